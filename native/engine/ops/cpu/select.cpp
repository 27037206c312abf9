#include "simd/select.h"

#include "loops.h"

namespace rapo::loops {

#ifdef RAPO_X86_ISAS
namespace avx512 {
const Table& table();
}
namespace avx2 {
const Table& table();
}
#endif
namespace baseline {
const Table& table();
}

namespace {

// In the order of preference.
const simd::Entry<const Table& (*)()> kEntries[] = {
#ifdef RAPO_X86_ISAS
    {"avx512", &simd::Features::avx512, &avx512::table},
    {"avx2", &simd::Features::avx2, &avx2::table},
#endif
    {"baseline", nullptr, &baseline::table},
};

const Table& choose() {
  return simd::select(kEntries, simd::from_environment("RAPO_ENGINE_ISA"), "RAPO_ENGINE_ISA",
                      ErrorCode::kUnsupported)();
}

}  // namespace

const Table& table() {
  static const Table& chosen = choose();
  return chosen;
}

template <>
bool has_product<BFloat16>() {
  static const bool library_multiplies =
      table().name == std::string("avx512") && simd::processor().avx512bf16;
  return table().has_product && !library_multiplies;
}

}  // namespace rapo::loops
