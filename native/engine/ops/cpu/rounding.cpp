// Stochastic rounding of float32 to bfloat16.
#include "vec.h"

namespace rapo::loops {
namespace RAPO_ISA {
namespace {

using u32 = std::uint32_t;
using u64 = std::uint64_t;

/// philox.h's four words of 16 neighbouring counters.
RAPO_INLINE void philox16(u64 key, u64 stream, u64 counter, u32 (&words)[4][kLanes]) {
  u32 k0 = static_cast<u32>(key), k1 = static_cast<u32>(key >> 32);
  for (i64 l = 0; l < kLanes; ++l) {
    const u64 at = counter + static_cast<u64>(l);
    words[0][l] = static_cast<u32>(at);
    words[1][l] = static_cast<u32>(at >> 32);
    words[2][l] = static_cast<u32>(stream);
    words[3][l] = static_cast<u32>(stream >> 32);
  }
  for (int round = 0; round < 10; ++round) {
    for (i64 l = 0; l < kLanes; ++l) {
      const u64 a = u64{0xD2511F53} * words[0][l], b = u64{0xCD9E8D57} * words[2][l];
      words[0][l] = static_cast<u32>(b >> 32) ^ words[1][l] ^ k0;
      words[1][l] = static_cast<u32>(b);
      words[2][l] = static_cast<u32>(a >> 32) ^ words[3][l] ^ k1;
      words[3][l] = static_cast<u32>(a);
    }
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
}

void round_randomly(const float* x, BFloat16* y, i64 n, u64 key, u64 stream, i64 first) {
  constexpr i64 kParts = kRoundingBlock / kLanes;
  for (i64 at = 0; at < n; at += kRoundingBlock) {
    const i64 count = n - at < kRoundingBlock ? n - at : kRoundingBlock;
    u32 words[4][kLanes];
    philox16(key, stream, static_cast<u64>((first + at) / kParts), words);
    u32 bits[kRoundingBlock] = {};
    std::uint16_t rounded[kRoundingBlock];
    __builtin_memcpy(bits, x + at, static_cast<std::size_t>(count) * 4);
    for (i64 j = 0; j < kParts; ++j) {
      for (i64 l = 0; l < kLanes; ++l) {
        const u32 own = bits[j * kLanes + l], random = words[j / 2][l] >> (j % 2 * 16) & 0xFFFF;
        const u32 magnitude = own & 0x7FFFFFFF;
        // Infinities stay, and NaNs become quiet ones.
        const u32 special = own | (magnitude > 0x7F800000 ? 0x400000u : 0u);
        const u32 moved = magnitude >= 0x7F800000 ? special : own + random;
        rounded[j * kLanes + l] = static_cast<std::uint16_t>(moved >> 16);
      }
    }
    __builtin_memcpy(y + at, rounded, static_cast<std::size_t>(count) * 2);
  }
}

}  // namespace

void fill_rounding(Table& table) { table.round_randomly = &round_randomly; }

}  // namespace RAPO_ISA
}  // namespace rapo::loops
