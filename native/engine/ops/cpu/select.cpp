#include <cstdlib>
#include <string>

#include "error.h"
#include "loops.h"

namespace rapo::loops {

#ifdef RAPO_ENGINE_X86
namespace avx512 {
extern const Table kTable;
}
namespace avx2 {
extern const Table kTable;
}
#endif
namespace baseline {
extern const Table kTable;
}

namespace {

struct Entry {
  const Table* table;
  bool supported;
};

const Table& choose() {
  // Best first.
  const Entry entries[] = {
#ifdef RAPO_ENGINE_X86
      {&avx512::kTable, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")},
      {&avx2::kTable, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
#endif
      {&baseline::kTable, true},
  };
  const char* wanted = std::getenv("RAPO_ENGINE_ISA");
  for (const Entry& entry : entries) {
    const bool named =
        !wanted || !*wanted || std::string(wanted) == "aten" || std::string(wanted) == entry.table->name;
    if (named && entry.supported) return *entry.table;
  }
  throw Error(ErrorCode::kUnsupported, std::string("RAPO_ENGINE_ISA is \"") + wanted +
                                           "\", which this machine or build does not have");
}

}  // namespace

const Table& table() {
  static const Table& chosen = choose();
  return chosen;
}

bool has_product(bool is_bf16) {
#ifdef RAPO_ENGINE_X86
  static const bool multiplies_bf16 = &table() == &avx512::kTable && __builtin_cpu_supports("avx512bf16");
  if (is_bf16 && multiplies_bf16) return false;
#endif
  return table().has_product;
}

}  // namespace rapo::loops
