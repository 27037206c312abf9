// The policy term of the objective: value g and slope dg/dlp (docs/objective.md).
#pragma once

#include <cmath>

#include "host_device.h"
#include "objective.h"

namespace rapo {

/// A ratio, computed from its logarithm, which is clamped from above.
struct Ratio {
  double value;  // exp(log)
  double slope;  // derivative with respect to log: value, or 0 if clamped
  double log;    // after the clamp

  RAPO_HOST_DEVICE Ratio(double log_ratio, double max_log_ratio)
      : value(std::exp(log_ratio > max_log_ratio ? max_log_ratio : log_ratio)),
        slope(log_ratio > max_log_ratio ? 0 : value),
        log(log_ratio > max_log_ratio ? max_log_ratio : log_ratio) {}
};

struct SurrogateTerm {
  double value = 0;
  double slope = 0;  // dg/dlp
  int clipped = 0;   // 1: the lower bound cut the gradient off (cispo: the weight); 2: an upper bound
};

constexpr const char* surrogate_name(Surrogate s) {
  switch (s) {
#define RAPO_NAMED(surrogate, name, ...) \
  case Surrogate::surrogate:             \
    return name;
    RAPO_SURROGATES(RAPO_NAMED)
#undef RAPO_NAMED
  }
  return "unknown";
}

/// Whether the surrogate reads ratio_cap.
constexpr bool is_capped(Surrogate s) {
#define RAPO_CAPPED(surrogate, name, capped) \
  if (s == Surrogate::surrogate) return capped;
  RAPO_SURROGATES(RAPO_CAPPED)
#undef RAPO_CAPPED
  return false;
}

/// lp: the token's log-prob. ratio: the token's ratio exp(lp - o); for gspo the sequence's.
RAPO_HOST_DEVICE inline SurrogateTerm evaluate_surrogate(double lp, const Ratio& ratio, double advantage,
                                                         const Objective& objective) {
  SurrogateTerm term;
  const double low = 1 - objective.clip_low, high = 1 + objective.clip_high, rho = ratio.value;
  switch (objective.surrogate) {
    case Surrogate::kClip:
    case Surrogate::kGspo:
      // gspo: each of the `length` tokens moves the sequence's log-ratio by 1/length, and `length` tokens
      // have that ratio.
      if (advantage > 0 && rho > high) {
        term.clipped = 2;
        term.value = high * advantage;
      } else if (advantage < 0 && rho < low) {
        term.clipped = 1;
        term.value = low * advantage;
      } else if (advantage < 0 && rho > objective.ratio_cap) {
        term.clipped = 2;
        term.value = objective.ratio_cap * advantage;
      } else {
        term.value = rho * advantage;
        term.slope = ratio.slope * advantage;
      }
      break;
    case Surrogate::kCispo: {
      // The clipped ratio is a constant weight, so that no token's gradient is cut off.
      term.clipped = rho > high ? 2 : rho < low ? 1 : 0;
      const double weight = term.clipped == 2 ? high : term.clipped == 1 ? low : rho;
      term.value = weight * advantage * lp;
      term.slope = weight * advantage;
      break;
    }
    case Surrogate::kSapo: {
      const double tau = advantage > 0 ? objective.sapo_tau_positive : objective.sapo_tau_negative;
      const double e = std::exp(-tau * (rho - 1)), sigma = 1 / (1 + e);
      term.value = 4 / tau * sigma * advantage;
      // sigma (1 - sigma) = e / (1 + e)^2. The function is even, so e is taken on the side where it cannot
      // overflow.
      const double small = std::exp(-std::fabs(tau * (rho - 1)));
      term.slope = 4 * advantage * ratio.slope * small / ((1 + small) * (1 + small));
      break;
    }
  }
  return term;
}

}  // namespace rapo
