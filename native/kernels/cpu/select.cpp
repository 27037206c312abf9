#include "select.h"

#include <atomic>
#include <cstdlib>

#include "error.h"

#ifdef RAPO_X86_ISAS
#include "x86.h"
#endif

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

struct Entry {
  const RowKernels* kernels;
  bool (*available)();
};

#ifdef RAPO_X86_ISAS
const x86::Features& processor() {
  static const x86::Features found = x86::features();
  return found;
}
bool has_avx2() { return processor().avx2; }
bool has_avx512() { return processor().avx512; }
#endif
#ifdef RAPO_AVX512BF16_ISA
bool has_avx512bf16() { return processor().avx512bf16; }
#endif
bool always() { return true; }

// In the order of preference.
const Entry kEntries[] = {
#ifdef RAPO_AVX512BF16_ISA
    {&avx512bf16::kernels, has_avx512bf16},
#endif
#ifdef RAPO_X86_ISAS
    {&avx512::kernels, has_avx512},
    {&avx2::kernels, has_avx2},
#endif
#ifdef RAPO_NEON_ISA
    {&neon::kernels, always},  // every 64-bit Arm has it
#endif
    {&portable::kernels, always},
};

const RowKernels& find(const std::string& name) {
  std::string known;
  for (const auto& entry : kEntries) {
    if (!entry.available()) continue;
    if (name.empty() || name == entry.kernels->name) return *entry.kernels;
    known += (known.empty() ? "" : ", ") + std::string(entry.kernels->name);
  }
  throw Error(ErrorCode::kInvalidArgument,
              "RAPO_KERNELS_ISA is " + name + ", expected one that this machine has: " + known);
}

const RowKernels& default_kernels() {
  const char* wanted = std::getenv("RAPO_KERNELS_ISA");
  return find(wanted ? wanted : "");
}

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

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const auto& entry : kEntries) {
    if (entry.available()) names.emplace_back(entry.kernels->name);
  }
  return names;
}

void select_isa(const std::string& name) { selected.store(name.empty() ? &default_kernels() : &find(name)); }

}  // namespace rapo
