// The functions that every instruction set implements: the passes over one row of logits, or over the two
// rows of a full penalty. row.cpp is compiled once per instruction set, each time into a namespace of its
// own.
#pragma once

#include <cstdint>

#include "../objective.h"
#include "../row_math.h"

namespace rapo {

/// Index of a dtype in the tables below: float32, bfloat16, float16.
constexpr int dtype_index(DType dtype) {
  return dtype == DType::kFloat32 ? 0 : dtype == DType::kBFloat16 ? 1 : 2;
}

/// Tables of functions. [3] is indexed by dtype_index; full penalties are indexed by full_index first. A
/// gradient may overwrite its own row of logits. stream: write past the caches, for gradients that do not fit
/// into them.
struct RowKernels {
  const char* name;
  RowStats (*sum[3])(const void* row, std::int64_t n, float scale);  // leaves `weighted` 0
  RowStats (*stats[3])(const void* row, std::int64_t n, float scale);
  PairStats (*pair_stats[kFullPenalties][3])(const void* row, const void* ref, std::int64_t n, float scale,
                                             float ref_scale);
  // [dtype][0: the logits' dtype, 1: float32]
  void (*gradient[3][2])(const void* row, void* out, std::int64_t n, const GradientTerms& terms, bool stream);
  void (*pair_gradient[kFullPenalties][3][2])(const void* row, const void* ref, void* out, std::int64_t n,
                                              const GradientTerms& terms, bool stream);
};

}  // namespace rapo
