// The objective (docs/objective.md) as plain data: the kernels' arguments and results. Symbols in comments: N
// rows (completion tokens), V vocabulary.
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
  kFloat64,  // accepted by the reference oracle only, for finite differences
};

/// The KL penalties D_t; docs/objective.md has the value and gradient of each. X(enumerator, name, full,
/// reweighted, clamped). A full penalty is a sum over the vocabulary; the others depend only on the sampled
/// token. A reweighted penalty accepts ref weights. A clamped penalty takes e^d, so that d is clamped.
#define RAPO_PENALTIES(X)                               \
  X(kNone, "none", false, false, false)                 \
  X(kForward, "forward", false, true, true)             \
  X(kForwardFull, "forward-full", true, true, false)    \
  X(kForwardScore, "forward-score", false, true, true)  \
  X(kReverseScore, "reverse-score", false, false, true) \
  X(kReverseK1, "reverse-k1", false, false, false)      \
  X(kReverseK2, "reverse-k2", false, false, false)      \
  X(kReverseK3, "reverse-k3", false, false, true)       \
  X(kReverseFull, "reverse-full", true, false, false)

/// The full penalties, X(enumerator).
#define RAPO_FULL_PENALTIES(X) X(kForwardFull) X(kReverseFull)

/// The policy terms g_t; docs/objective.md has the value and gradient of each. X(enumerator, name, capped). A
/// capped term reads ratio_cap.
#define RAPO_SURROGATES(X)  \
  X(kClip, "clip", true)    \
  X(kCispo, "cispo", false) \
  X(kSapo, "sapo", false)   \
  X(kGspo, "gspo", true)

/// The numbers of an objective: X(member, name in JS, default, lowest value, whether the lowest value itself
/// is excluded, highest value). lib/loss/fields.ts has the same table, and test/loss/objective.test.ts
/// compares the two.
/// - kl_coef alpha, the weight of D
/// - entropy_coef beta, the weight of H
/// - clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high]
/// - ratio_cap: upper bound of the ratio if A < 0, too; at least 1 + clip_high
/// - sapo_tau_positive, sapo_tau_negative: sharpness of sapo's gate if A > 0, and otherwise
/// - temperature tau: both models' logits are divided by it
/// - max_log_ratio: upper clamp of d and of log rho. exp(20) = 4.9e8; a larger ratio carries nothing that a
///   gradient could use
#define RAPO_OBJECTIVE_NUMBERS(X)                             \
  X(kl_coef, "klCoef", 0, 0, false, kLargest)                 \
  X(entropy_coef, "entropyCoef", 0, 0, false, kLargest)       \
  X(clip_low, "clipLow", 0.2, 0, false, 1)                    \
  X(clip_high, "clipHigh", 0.2, 0, false, kInfinite)          \
  X(ratio_cap, "ratioCap", kInfinite, 1, false, kInfinite)    \
  X(sapo_tau_positive, "sapoTauPositive", 1, 0, true, 1e6)    \
  X(sapo_tau_negative, "sapoTauNegative", 1.05, 0, true, 1e6) \
  X(temperature, "temperature", 1, 1e-6, false, 1e6)          \
  X(max_log_ratio, "maxLogRatio", 20, 0, true, 20)

constexpr double kInfinite = std::numeric_limits<double>::infinity();
constexpr double kLargest = std::numeric_limits<double>::max();

#define RAPO_ENUMERATOR(name, ...) name,
enum class Penalty : std::uint8_t { RAPO_PENALTIES(RAPO_ENUMERATOR) };
enum class Surrogate : std::uint8_t { RAPO_SURROGATES(RAPO_ENUMERATOR) };
#undef RAPO_ENUMERATOR

struct Objective {
  Surrogate surrogate = Surrogate::kClip;
  Penalty penalty = Penalty::kNone;
#define RAPO_MEMBER(name, js, value, ...) double name = value;
  RAPO_OBJECTIVE_NUMBERS(RAPO_MEMBER)
#undef RAPO_MEMBER
};

/// One row per completion token. Row i of the logits must be the logits that predicted token_ids[i]. A row
/// with token weight 0 is masked: its logits may hold anything, it takes no part in any sum, and its gradient
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
  // For gspo, one of the two: the first row of each sequence, or the log-ratios made from the sequences.
  std::int64_t sequences = 0;                      // B
  const std::int32_t* sequence_offsets = nullptr;  // (B + 1) ascending from 0 to N
  const double* sequence_log_ratios =
      nullptr;  // (N) mean of lp - o over the unmasked rows of the row's sequence
  const std::int64_t* row_names =
      nullptr;  // (N) the numbers of the rows in errors, always on the host; null: 0, 1, ...

  std::int64_t name_of(std::int64_t row) const { return row_names ? row_names[row] : row; }
};

/// Where results are written; a null pointer means "not wanted".
struct Outputs {
  void* grad_logits = nullptr;  // (N, V) d loss / d logits; may be the policy's logits themselves (in place)
  DType grad_dtype = DType::kFloat32;
  std::int64_t grad_stride = 0;
#define RAPO_MEMBER(name, type, ...) type* name = nullptr;
  RAPO_ROW_OUTPUTS(RAPO_MEMBER)
#undef RAPO_MEMBER
};

/// Sums over the unmasked rows. The metrics of the parts of a batch add up, except that ratio_min and
/// ratio_max combine as minimum and maximum.
struct Metrics {
  std::int64_t tokens = 0;        // unmasked rows
  double loss = 0;                // -sum n (w g - alpha D + beta H), w the policy weight
  double kl_sum = 0;              // sum D
  double entropy_sum = 0;         // sum H
  double ratio_sum = 0;           // sum rho (gspo: the sequence's ratio)
  double approx_kl_sum = 0;       // sum (rho - 1 - log rho): KL(old || policy), the k3 estimate
  std::int64_t clipped_low = 0;   // rows whose gradient the lower bound cut off (A < 0)
  std::int64_t clipped_high = 0;  // rows that an upper bound cut off (A > 0, or beyond ratio_cap)
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
