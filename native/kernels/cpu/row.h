// What every instruction set implements: the passes over one row of logits (one pair of rows for the full
// penalties). row.cpp is compiled once per instruction set, each into a namespace of its own.
#pragma once

#include <cstdint>

#include "../objective.h"
#include "../row_math.h"

namespace rapo {

/// float32, bfloat16, float16.
constexpr int dtype_index(DType dtype) {
  return dtype == DType::kFloat32 ? 0 : dtype == DType::kBFloat16 ? 1 : 2;
}

/// Indexed by dtype_index where it says [3]; the full penalties' first by full_index. A gradient may
/// overwrite its own row of logits. stream: write past the caches (for gradients that would not fit there
/// anyway).
struct RowKernels {
  const char* name;
  RowStats (*sum[3])(const void* row, std::int64_t n, float scale);  // weighted is left 0
  RowStats (*stats[3])(const void* row, std::int64_t n, float scale);
  PairStats (*pair_stats[kFullPenalties][3])(const void* row, const void* ref, std::int64_t n, float scale,
                                             float ref_scale);
  // [dtype][0: the logits' dtype, 1: float32]
  void (*gradient[3][2])(const void* row, void* out, std::int64_t n, const GradientTerms& terms, bool stream);
  void (*pair_gradient[kFullPenalties][3][2])(const void* row, const void* ref, void* out, std::int64_t n,
                                              const GradientTerms& terms, bool stream);
};

}  // namespace rapo
