// What every instruction set implements: the passes over one row of logits (one pair of rows for the full
// penalties). row.cpp is compiled once per instruction set, each into a namespace of its own.
#pragma once

#include <cstdint>

#include "../objective.h"

namespace rapo {

/// float32, bfloat16, float16.
constexpr int dtype_index(DType dtype) {
  return dtype == DType::kFloat32 ? 0 : dtype == DType::kBFloat16 ? 1 : 2;
}

/// With x = (z - max) * scale: sum = Σ e^x, weighted = Σ e^x x. max is about the largest z: x may reach 1. In
/// a row with NaN, +inf or nothing but -inf, max or sum is not finite.
struct RowStats {
  double max, sum, weighted;
};

/// Policy (p) and reference (r; without its weighted sum), and what crosses the two: Σ e^{x_r} (x_r - x_p)
/// for the forward KL, Σ e^{x_p} (x_p - x_r) for the reverse.
struct PairStats {
  RowStats p, r;
  double cross;
};

/// grad_v = e^{x} (constant + linear x), for a full penalty plus reference e^{x_r} where it is the forward
/// KL, reference e^{x} x_r where it is the reverse.
struct GradientTerms {
  float scale, max;          // of the policy's row
  float ref_scale, ref_max;  // of the reference's
  float constant, linear, reference;
};

/// Indexed by dtype_index where it says [3]; the full penalties' first by [0: forward, 1: reverse]. A
/// gradient may overwrite its own row of logits. stream: write past the caches (for gradients that would not
/// fit there anyway).
struct RowKernels {
  const char* name;
  RowStats (*sum[3])(const void* row, std::int64_t n, float scale);  // weighted is left 0
  RowStats (*stats[3])(const void* row, std::int64_t n, float scale);
  PairStats (*pair_stats[2][3])(const void* row, const void* ref, std::int64_t n, float scale,
                                float ref_scale);
  // [dtype][0: the logits' dtype, 1: float32]
  void (*gradient[3][2])(const void* row, void* out, std::int64_t n, const GradientTerms& terms, bool stream);
  void (*pair_gradient[2][3][2])(const void* row, const void* ref, void* out, std::int64_t n,
                                 const GradientTerms& terms, bool stream);
};

}  // namespace rapo
