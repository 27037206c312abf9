// The policy term of the objective: value g and slope dg/dlp (rapo.md section 3).
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
  int clipped = 0;       // 1: the lower bound cut the gradient off, 2: the upper
};

/// log_rho = lp - o before the clamp.
inline SurrogateTerm clip_surrogate(double log_rho, double advantage, const Objective& objective) {
  SurrogateTerm term;
  const bool clamped = log_rho > objective.max_log_ratio;
  term.log_rho = clamped ? objective.max_log_ratio : log_rho;
  term.rho = std::exp(term.log_rho);
  term.rho_slope = clamped ? 0 : term.rho;
  const double low = 1 - objective.clip_low, high = 1 + objective.clip_high;
  if (advantage > 0 && term.rho > high) {
    term.clipped = 2;
    term.value = high * advantage;
  } else if (advantage < 0 && term.rho < low) {
    term.clipped = 1;
    term.value = low * advantage;
  } else {
    term.value = term.rho * advantage;
    term.slope = term.rho_slope * advantage;
  }
  return term;
}

}  // namespace rapo
