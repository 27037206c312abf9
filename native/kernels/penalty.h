// The KL penalties that depend only on the sampled token: value D and slope dD/dlp (docs/objective.md). The
// two full penalties are sums over the vocabulary; the row kernels compute them.
#pragma once

#include <cmath>

#include "host_device.h"
#include "objective.h"

namespace rapo {

/// A penalty's entry in RAPO_PENALTIES.
struct PenaltyTraits {
  const char* name;
  bool full, reweighted, clamped;
};

RAPO_HOST_DEVICE constexpr PenaltyTraits traits(Penalty p) {
  switch (p) {
#define RAPO_TRAITS(penalty, name, full, reweighted, clamped) \
  case Penalty::penalty:                                      \
    return {name, full, reweighted, clamped};
    RAPO_PENALTIES(RAPO_TRAITS)
#undef RAPO_TRAITS
  }
  return {"unknown", false, false, false};
}

RAPO_HOST_DEVICE constexpr bool is_full(Penalty p) { return traits(p).full; }
constexpr const char* penalty_name(Penalty p) { return traits(p).name; }

#define RAPO_ONE(penalty) +1  // NOLINT(bugprone-macro-parentheses): a term of a sum
constexpr int kFullPenalties = RAPO_FULL_PENALTIES(RAPO_ONE);
#undef RAPO_ONE

/// A full penalty's index among the full penalties.
constexpr int full_index(Penalty p) {
  int index = 0;
#define RAPO_COUNT(penalty)                \
  if (p == Penalty::penalty) return index; \
  ++index;
  RAPO_FULL_PENALTIES(RAPO_COUNT)
#undef RAPO_COUNT
  return 0;
}

struct PenaltyTerm {
  double value = 0;
  double slope = 0;      // dD/dlp
  bool clamped = false;  // d was cut at the upper clamp: no gradient
};

/// d = q[a] - lp; rho and d rho / d lp come from the surrogate. d = -inf (the reference gives the token no
/// mass) gives an infinite value, except for `forward` and `forward-score`, which take their limits.
RAPO_HOST_DEVICE inline PenaltyTerm sampled_penalty(Penalty penalty, double d, double rho, double rho_slope,
                                                    double max_log_ratio) {
  const bool takes_exp = traits(penalty).clamped;
  const bool clamped = takes_exp && d > max_log_ratio;
  if (clamped) d = max_log_ratio;
  const double w = takes_exp ? std::exp(d) : 0;
  const double wd = w == 0 ? 0 : w * d;  // w falls to 0 faster than d to -inf
  PenaltyTerm term;
  term.clamped = clamped;
  switch (penalty) {
    case Penalty::kForward:
      // (d - 1) e^d + 1 loses all digits near d = 0; d e^d - expm1(d) does not.
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
    default:  // kNone, and the full penalties
      break;
  }
  if (clamped) term.slope = 0;
  return term;
}

}  // namespace rapo
