// Random numbers that depend only on a key and a counter.
#pragma once

#include <array>
#include <cstdint>

namespace rapo {

/// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"): four random words from a key
/// and a counter, with no state in between.
inline std::array<std::uint32_t, 4> philox(std::uint64_t key, std::uint64_t counter_high,
                                           std::uint64_t counter_low) {
  std::uint32_t k0 = static_cast<std::uint32_t>(key), k1 = static_cast<std::uint32_t>(key >> 32);
  std::array<std::uint32_t, 4> c = {
      static_cast<std::uint32_t>(counter_low), static_cast<std::uint32_t>(counter_low >> 32),
      static_cast<std::uint32_t>(counter_high), static_cast<std::uint32_t>(counter_high >> 32)};
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xD2511F53} * c[0];
    const std::uint64_t b = std::uint64_t{0xCD9E8D57} * c[2];
    c = {static_cast<std::uint32_t>(b >> 32) ^ c[1] ^ k0, static_cast<std::uint32_t>(b),
         static_cast<std::uint32_t>(a >> 32) ^ c[3] ^ k1, static_cast<std::uint32_t>(a)};
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return c;
}

/// What philox_key() makes a key for.
constexpr std::uint64_t kMomentRounding = 1, kMergeRounding = 2;

/// A key for philox() from the seed of a run, the number of a step, and what the numbers are for.
inline std::uint64_t philox_key(std::uint64_t seed, std::uint64_t step, std::uint64_t purpose) {
  const auto words = philox(seed, purpose, step);
  return static_cast<std::uint64_t>(words[0]) << 32 | words[1];
}

/// A number in [0, 1) with 53 random bits.
inline double uniform(std::uint64_t seed, std::uint64_t stream, std::uint64_t index) {
  const auto words = philox(seed, stream, index);
  const std::uint64_t bits = (static_cast<std::uint64_t>(words[0]) << 32) | words[1];
  return static_cast<double>(bits >> 11) * 0x1.0p-53;
}

}  // namespace rapo
