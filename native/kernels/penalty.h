// The KL penalties that look at the sampled token alone: value D and slope dD/dlp (docs/objective.md).
// The two full ones are sums over the vocabulary and live in the row kernels.
#pragma once

#include <cmath>
#include <limits>

#include "host_device.h"
#include "objective.h"

namespace rapo {

constexpr double kMaxLogRatio =
    20;  // exp(20) = 4.9e8: beyond it a ratio says nothing that a gradient could use

RAPO_HOST_DEVICE constexpr bool is_full(Penalty p) {
  return p == Penalty::kForwardFull || p == Penalty::kReverseFull;
}
RAPO_HOST_DEVICE constexpr bool is_reverse(Penalty p) { return p >= Penalty::kReverseScore; }

constexpr const char* penalty_name(Penalty p) {
  switch (p) {
    case Penalty::kNone:
      return "none";
    case Penalty::kForward:
      return "forward";
    case Penalty::kForwardFull:
      return "forward-full";
    case Penalty::kForwardScore:
      return "forward-score";
    case Penalty::kReverseScore:
      return "reverse-score";
    case Penalty::kReverseK1:
      return "reverse-k1";
    case Penalty::kReverseK2:
      return "reverse-k2";
    case Penalty::kReverseK3:
      return "reverse-k3";
    case Penalty::kReverseFull:
      return "reverse-full";
  }
  return "unknown";
}

struct PenaltyTerm {
  double value = 0;
  double slope = 0;      // dD/dlp
  bool clamped = false;  // d was cut at the upper clamp: no gradient
};

/// d = q[a] - lp; rho and d rho/d lp as the surrogate has them. d = -inf (no reference mass) gives an
/// infinite value for every penalty but `forward` and `forward-score`, which take their limits.
RAPO_HOST_DEVICE inline PenaltyTerm sampled_penalty(Penalty penalty, double d, double rho, double rho_slope,
                                                    double max_log_ratio) {
  const bool takes_exp = penalty == Penalty::kForward || penalty == Penalty::kForwardScore ||
                         penalty == Penalty::kReverseScore || penalty == Penalty::kReverseK3;
  const bool clamped = takes_exp && d > max_log_ratio;
  if (clamped) d = max_log_ratio;
  const double w = takes_exp ? std::exp(d) : 0;
  const double wd = w == 0 ? 0 : w * d;  // w -> 0 faster than d -> -inf
  PenaltyTerm term;
  term.clamped = clamped;
  switch (penalty) {
    case Penalty::kForward:
      // (d - 1) e^d + 1 cancels to nothing near d = 0; d e^d - expm1(d) does not.
      term = {wd - std::expm1(d), -wd, clamped};
      break;
    case Penalty::kForwardScore: {
      const double f = wd - std::expm1(d);
      term = {rho * f, rho_slope * f - rho * wd, clamped};
      break;
    }
    case Penalty::kReverseScore: {
      const double f = std::expm1(d) - d;
      term = {rho * f, rho_slope * f - rho * std::expm1(d), clamped};
      break;
    }
    case Penalty::kReverseK1:
      term = {-d, 1, false};
      break;
    case Penalty::kReverseK2:
      term = {d * d / 2, -d, false};
      break;
    case Penalty::kReverseK3:
      term = {std::expm1(d) - d, -std::expm1(d), clamped};
      break;
    case Penalty::kNone:
    case Penalty::kForwardFull:
    case Penalty::kReverseFull:
      break;
  }
  if (clamped) term.slope = 0;
  return term;
}

}  // namespace rapo
