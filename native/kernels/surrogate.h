// The policy term of the objective: value g and slope dg/dlp (docs/objective.md).
#pragma once

#include <cmath>

#include "objective.h"

namespace rapo {

struct SurrogateTerm {
  double value = 0;
  double slope = 0;      // dg/dlp
  double rho = 1;        // exp(min(lp - o, max_log_ratio))
  double rho_slope = 1;  // d rho/d lp: rho, or 0 where its logarithm was clamped
  double log_rho = 0;    // after the clamp
  int clipped = 0;       // 1: the lower bound cut the gradient off (cispo: the weight), 2: an upper one
};

constexpr const char* surrogate_name(Surrogate s) {
  return s == Surrogate::kClip ? "clip" : s == Surrogate::kCispo ? "cispo" : "sapo";
}

/// lp: the token's log-prob; log_rho = lp - o before the clamp.
inline SurrogateTerm evaluate_surrogate(double lp, double log_rho, double advantage,
                                        const Objective& objective) {
  SurrogateTerm term;
  const bool clamped = log_rho > objective.max_log_ratio;
  term.log_rho = clamped ? objective.max_log_ratio : log_rho;
  term.rho = std::exp(term.log_rho);
  term.rho_slope = clamped ? 0 : term.rho;
  const double low = 1 - objective.clip_low, high = 1 + objective.clip_high;
  switch (objective.surrogate) {
    case Surrogate::kClip:
      if (advantage > 0 && term.rho > high) {
        term.clipped = 2;
        term.value = high * advantage;
      } else if (advantage < 0 && term.rho < low) {
        term.clipped = 1;
        term.value = low * advantage;
      } else if (advantage < 0 && term.rho > objective.ratio_cap) {
        term.clipped = 2;
        term.value = objective.ratio_cap * advantage;
      } else {
        term.value = term.rho * advantage;
        term.slope = term.rho_slope * advantage;
      }
      break;
    case Surrogate::kCispo: {
      // The clipped ratio is a constant weight: no token's gradient is cut off.
      term.clipped = term.rho > high ? 2 : term.rho < low ? 1 : 0;
      const double weight = term.clipped == 2 ? high : term.clipped == 1 ? low : term.rho;
      term.value = weight * advantage * lp;
      term.slope = weight * advantage;
      break;
    }
    case Surrogate::kSapo: {
      const double tau = advantage > 0 ? objective.sapo_tau_positive : objective.sapo_tau_negative;
      const double e = std::exp(-tau * (term.rho - 1)), sigma = 1 / (1 + e);
      term.value = 4 / tau * sigma * advantage;
      // sigma (1 - sigma) as e / (1 + e)^2, e taken where it cannot overflow: the function is even.
      const double small = std::exp(-std::fabs(tau * (term.rho - 1)));
      term.slope = 4 * advantage * term.rho_slope * small / ((1 + small) * (1 + small));
      break;
    }
  }
  return term;
}

}  // namespace rapo
