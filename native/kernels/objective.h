// The objective (docs/objective.md) as plain data: what the kernels are told, given and return.
// Symbols in comments: N rows (completion tokens), V vocabulary.
#pragma once

#include <cstdint>
#include <limits>

#include "host_device.h"
#include "row_arrays.h"

namespace rapo {

enum class DType : std::uint8_t {
  kFloat32,
  kBFloat16,
  kFloat16,
  kFloat64,  // the reference oracle alone takes it: for finite differences
};

/// The KL penalty D_t; value and gradient of each in docs/objective.md.
enum class Penalty : std::uint8_t {
  kNone,
  kForward,
  kForwardFull,
  kForwardScore,
  kReverseScore,
  kReverseK1,
  kReverseK2,
  kReverseK3,
  kReverseFull,
};

/// The policy term g_t; value and gradient of each in docs/objective.md.
enum class Surrogate : std::uint8_t { kClip, kCispo, kSapo, kGspo };

struct Objective {
  Surrogate surrogate = Surrogate::kClip;
  Penalty penalty = Penalty::kNone;
  double kl_coef = 0;       // alpha >= 0
  double entropy_coef = 0;  // beta
  double clip_low = 0.2;    // the ratio is clipped to [1 - clip_low, 1 + clip_high]
  double clip_high = 0.2;
  // clip: upper bound of the ratio where A < 0, too; >= 1 + clip_high
  double ratio_cap = std::numeric_limits<double>::infinity();
  double sapo_tau_positive = 1, sapo_tau_negative = 1.05;  // sapo: sharpness where A > 0 and elsewhere; > 0
  double temperature = 1;                                  // tau > 0: both models' logits are divided by it
  double max_log_ratio = 20;                               // upper clamp of d and of log rho, in (0, 20]
};

/// One row per completion token: row i of the logits is the distribution token_ids[i] was drawn from.
/// A row whose token weight is 0 is masked: whatever it holds, it takes no part in any sum and its gradient
/// is 0.
struct Batch {
  std::int64_t rows = 0;        // N
  std::int64_t vocab_size = 0;  // V
  DType dtype = DType::kFloat32;
  const void* logits = nullptr;      // (N, V) of the policy, before division by the temperature
  const void* ref_logits = nullptr;  // (N, V) of the reference, same dtype; null without a penalty
  std::int64_t logits_stride = 0;    // elements between rows; >= V
  std::int64_t ref_stride = 0;
#define RAPO_MEMBER(name, type, ...) const type* name = nullptr;
  RAPO_ROW_ARRAYS(RAPO_MEMBER)
#undef RAPO_MEMBER
  // gspo alone, one of the two: where each sequence's rows begin and end, or the log-ratios made from them.
  std::int64_t sequences = 0;                      // B
  const std::int32_t* sequence_offsets = nullptr;  // (B + 1) ascending from 0 to N
  const double* sequence_log_ratios =
      nullptr;  // (N) mean of lp - o over the unmasked rows of the row's sequence
  const std::int64_t* row_names =
      nullptr;  // (N) what errors call the rows, always on the host; null: 0, 1, ...

  std::int64_t name_of(std::int64_t row) const { return row_names ? row_names[row] : row; }
};

/// Where results go; a null pointer means "not wanted".
struct Outputs {
  void* grad_logits = nullptr;  // (N, V) d loss / d logits; may be the policy's logits themselves (in place)
  DType grad_dtype = DType::kFloat32;
  std::int64_t grad_stride = 0;
#define RAPO_MEMBER(name, type, ...) type* name = nullptr;
  RAPO_ROW_OUTPUTS(RAPO_MEMBER)
#undef RAPO_MEMBER
};

/// Sums over the unmasked rows, so that the metrics of any split of a batch add up; min and max combine as
/// such.
struct Metrics {
  std::int64_t tokens = 0;        // unmasked rows
  double loss = 0;                // -sum n (w g - alpha D + beta H), w the policy weight
  double kl_sum = 0;              // sum D
  double entropy_sum = 0;         // sum H
  double ratio_sum = 0;           // sum rho (gspo: of the sequence's)
  double approx_kl_sum = 0;       // sum (rho - 1 - log rho): KL(old || policy), the k3 estimate
  std::int64_t clipped_low = 0;   // rows whose gradient the lower bound cut off (A < 0)
  std::int64_t clipped_high = 0;  // ... an upper bound (A > 0, or beyond ratio_cap)
  std::int64_t kl_clamped = 0;    // rows with d above max_log_ratio
  double ratio_min = std::numeric_limits<double>::infinity();
  double ratio_max = -std::numeric_limits<double>::infinity();

  RAPO_HOST_DEVICE void add(const Metrics& other) {
    tokens += other.tokens;
    loss += other.loss;
    kl_sum += other.kl_sum;
    entropy_sum += other.entropy_sum;
    ratio_sum += other.ratio_sum;
    approx_kl_sum += other.approx_kl_sum;
    clipped_low += other.clipped_low;
    clipped_high += other.clipped_high;
    kl_clamped += other.kl_clamped;
    if (other.ratio_min < ratio_min) ratio_min = other.ratio_min;
    if (other.ratio_max > ratio_max) ratio_max = other.ratio_max;
  }
};

}  // namespace rapo
