#include "select.h"

#include <atomic>

#include "simd/select.h"

namespace rapo {

#ifdef RAPO_AVX512BF16_ISA
namespace avx512bf16 {
extern const RowKernels kernels;
}
#endif
#ifdef RAPO_X86_ISAS
namespace avx512 {
extern const RowKernels kernels;
}
namespace avx2 {
extern const RowKernels kernels;
}
#endif
#ifdef RAPO_NEON_ISA
namespace neon {
extern const RowKernels kernels;
}
#endif
namespace portable {
extern const RowKernels kernels;
}

namespace {

using Entry = simd::Entry<const RowKernels*>;

// The fastest first.
const Entry kEntries[] = {
#ifdef RAPO_AVX512BF16_ISA
    {"avx512bf16", &simd::Features::avx512bf16, &avx512bf16::kernels},
#endif
#ifdef RAPO_X86_ISAS
    {"avx512", &simd::Features::avx512, &avx512::kernels},
    {"avx2", &simd::Features::avx2, &avx2::kernels},
#endif
#ifdef RAPO_NEON_ISA
    {"neon", nullptr, &neon::kernels},  // every 64-bit Arm has it
#endif
    {"portable", nullptr, &portable::kernels},
};

constexpr const char* kVariable = "RAPO_KERNELS_ISA";

const RowKernels& find(const std::string& name) {
  return *simd::select(kEntries, name, kVariable, ErrorCode::kInvalidArgument);
}

const RowKernels& default_kernels() { return find(simd::from_environment(kVariable)); }

std::atomic<const RowKernels*> selected{nullptr};

}  // namespace

const RowKernels& row_kernels() {
  const RowKernels* kernels = selected.load(std::memory_order_acquire);
  if (!kernels) {
    kernels = &default_kernels();
    selected.store(kernels, std::memory_order_release);
  }
  return *kernels;
}

std::vector<std::string> available_isas() { return simd::available_names(kEntries); }

void select_isa(const std::string& name) { selected.store(name.empty() ? &default_kernels() : &find(name)); }

}  // namespace rapo
