// The scalar formulas between the passes over a row: from the row's sums to log-probs, entropy and
// divergences, and to the terms of its gradient. The CPU and CUDA paths share them.
#pragma once

#include <cmath>
#include <limits>

#include "host_device.h"
#include "objective.h"
#include "penalty.h"
#include "token.h"

namespace rapo {

/// With x = (z - max) * scale: sum = Σ e^x, weighted = Σ e^x x. max is about the largest z: on the CPU x may
/// reach 1. If a row has NaN, +inf or nothing but -inf, then max or sum is not finite, or sum is 0.
struct RowStats {
  double max, sum, weighted;
};

/// The sums of policy (p) and reference (r, without its weighted sum), and the cross sum: Σ e^{x_r} (x_r -
/// x_p) for the forward KL, Σ e^{x_p} (x_p - x_r) for the reverse KL.
struct PairStats {
  RowStats p, r;
  double cross;
};

/// grad_v = e^x (constant + linear x). A full penalty adds reference e^{x_r} for the forward KL, reference
/// e^x x_r for the reverse KL.
struct GradientTerms {
  float scale, max;          // of the policy's row
  float ref_scale, ref_max;  // of the reference's
  float constant, linear, reference;
};

// The scale of a uniform reference (phi = 0) in the passes over two rows. With it e^x is 1 for every finite
// logit, so that the policy's row can stand for the reference's.
constexpr float kFlat = std::numeric_limits<float>::min();

RAPO_HOST_DEVICE inline bool usable(const RowStats& s) {
  return std::isfinite(s.max) && std::isfinite(s.sum) && std::isfinite(s.weighted) && s.sum > 0;
}

/// log Σ e^x of the row.
RAPO_HOST_DEVICE inline double log_sum(const RowStats& s) { return std::log(s.sum); }

RAPO_HOST_DEVICE inline double entropy(const RowStats& s) { return log_sum(s) - s.weighted / s.sum; }

/// Log-prob of a word whose logit is z.
RAPO_HOST_DEVICE inline double log_prob(const RowStats& s, double z, double scale) {
  return (z - s.max) * scale - log_sum(s);
}

RAPO_HOST_DEVICE inline double phi_of(const Batch& batch, std::int64_t row) {
  return batch.ref_weights ? static_cast<double>(batch.ref_weights[row]) : 1.0;
}

/// The factor of the reference's logits.
RAPO_HOST_DEVICE inline float ref_scale_of(const Batch& batch, const Objective& objective, std::int64_t row) {
  return static_cast<float>(phi_of(batch, row) / objective.temperature);
}

/// z and u: logits of the row's token, of the policy and of the reference.
RAPO_HOST_DEVICE inline RowSums row_sums(const PairStats& s, const Batch& batch, const Objective& objective,
                                         std::int64_t row, double z, double u) {
  const float ref_scale = ref_scale_of(batch, objective, row);
  const bool reference = objective.penalty != Penalty::kNone, uniform = reference && ref_scale == 0;
  const auto vocab_size = static_cast<double>(batch.vocab_size);
  RowSums sums;
  sums.logprob = log_prob(s.p, z, static_cast<float>(1 / objective.temperature));
  sums.entropy = entropy(s.p);
  if (objective.penalty == Penalty::kForwardFull) {
    sums.full_kl = s.cross / s.r.sum - log_sum(s.r) + log_sum(s.p);
  }
  if (objective.penalty == Penalty::kReverseFull) {
    sums.full_kl = s.cross / s.p.sum - log_sum(s.p) + log_sum(s.r);
  }
  if (is_full(objective.penalty) && uniform && s.r.sum < vocab_size - 0.5) {
    sums.full_kl = std::numeric_limits<double>::infinity();  // the policy gives a word no mass
  }
  if (reference) sums.ref_logprob = uniform ? 0 - std::log(vocab_size) : log_prob(s.r, u, ref_scale);
  return sums;
}

/// The gradient -(n / tau) [ slope (1[v = a] - p_v) - alpha (dD/dz_v, full penalties) - beta p_v (l_v + H) ],
/// written as e^x (constant + linear x) + reference (e^{x_r} or e^x x_r), where p = e^x / sum and l = x - log
/// sum.
RAPO_HOST_DEVICE inline GradientTerms gradient_terms(const PairStats& s, const Batch& batch,
                                                     const Objective& objective, std::int64_t row,
                                                     const RowSums& sums, const Token& token) {
  const double n = static_cast<double>(batch.token_weights[row]) / objective.temperature;
  const double lse = log_sum(s.p), per_sum = n / s.p.sum;
  double constant = token.slope + objective.entropy_coef * (sums.entropy - lse);
  double linear = objective.entropy_coef, reference = 0;
  if (objective.penalty == Penalty::kForwardFull) {
    constant += objective.kl_coef;
    reference = -n * objective.kl_coef / s.r.sum;
  } else if (objective.penalty == Penalty::kReverseFull) {
    constant += objective.kl_coef * (log_sum(s.r) - lse - sums.full_kl);
    linear += objective.kl_coef;
    reference = -objective.kl_coef * per_sum;
  }
  return {static_cast<float>(1 / objective.temperature),
          static_cast<float>(s.p.max),
          ref_scale_of(batch, objective, row),
          static_cast<float>(s.r.max),
          static_cast<float>(constant * per_sum),
          static_cast<float>(linear * per_sum),
          static_cast<float>(reference)};
}

/// The gradient's element at the sampled token, in double, with 1 - p computed without cancellation.
RAPO_HOST_DEVICE inline double gradient_at_token(const Batch& batch, const Objective& objective,
                                                 std::int64_t row, const RowSums& sums, const Token& token) {
  const double n = static_cast<double>(batch.token_weights[row]) / objective.temperature;
  const double l = sums.logprob, p = std::exp(l);
  double dj = -token.slope * std::expm1(l) - objective.entropy_coef * p * (l + sums.entropy);
  if (objective.penalty == Penalty::kForwardFull) {
    dj -= objective.kl_coef * (p - std::exp(sums.ref_logprob));
  } else if (objective.penalty == Penalty::kReverseFull) {
    dj -= objective.kl_coef * p * (l - sums.ref_logprob - sums.full_kl);
  }
  return -n * dj;
}

}  // namespace rapo
