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

/// With x = (z - max) * scale: sum = Σ e^x, weighted = Σ e^x x. In a row with NaN, +inf or nothing but -inf
/// one of the three is not finite.
struct RowStats {
  double max, sum, weighted;
};

/// The same for policy (p) and reference (r) rows, and the two cross sums of the full penalties:
/// forward = Σ e^{x_r} (x_r - x_p), reverse = Σ e^{x_p} (x_p - x_r).
struct PairStats {
  RowStats p, r;
  double forward, reverse;
};

/// grad_v = e^{x} (constant + linear x + cross x_r) + reference e^{x_r}, terms of the reference for full
/// penalties.
struct GradientTerms {
  float scale, max;          // of the policy's row
  float ref_scale, ref_max;  // of the reference's
  float constant, linear, cross, reference;
};

/// Indexed by dtype_index where it says [3]. A gradient may overwrite its own row of
/// logits. stream: write past the caches (for gradients that would not fit there anyway).
struct RowKernels {
  const char* name;
  RowStats (*stats[3])(const void* row, std::int64_t n, float scale);
  PairStats (*pair_stats[3])(const void* row, const void* ref, std::int64_t n, float scale, float ref_scale);
  // [dtype][0: the logits' dtype, 1: float32]
  void (*gradient[3][2])(const void* row, void* out, std::int64_t n, const GradientTerms& terms, bool stream);
  void (*pair_gradient[3][2])(const void* row, const void* ref, void* out, std::int64_t n,
                              const GradientTerms& terms, bool stream);
};

}  // namespace rapo
