// Objective, DType and Metrics between JS (lib/loss/objective.ts, lib/train/metrics.ts) and the kernels'
// plain structs.
#pragma once

#include <napi.h>

#include <string>

#include "arrays.h"
#include "kernels/objective.h"
#include "kernels/penalty.h"
#include "kernels/surrogate.h"

namespace rapo::bindings {

inline DType dtype_from(const std::string& name, const char* field) {
  if (name == "float32") return DType::kFloat32;
  if (name == "bfloat16") return DType::kBFloat16;
  if (name == "float16") return DType::kFloat16;
  if (name == "float64") return DType::kFloat64;
  invalid(std::string(field) + " is \"" + name + "\", expected float32, bfloat16 or float16");
}

inline Penalty penalty_from(const std::string& name) {
  std::string known;
  for (int i = 0; i <= static_cast<int>(Penalty::kReverseFull); ++i) {
    const auto penalty = static_cast<Penalty>(i);
    if (name == penalty_name(penalty)) return penalty;
    known += (i ? ", " : "") + std::string(penalty_name(penalty));
  }
  invalid("penalty is \"" + name + "\", expected one of " + known);
}

inline Surrogate surrogate_from(const std::string& name) {
  for (const auto surrogate : {Surrogate::kClip, Surrogate::kCispo, Surrogate::kSapo, Surrogate::kGspo}) {
    if (name == surrogate_name(surrogate)) return surrogate;
  }
  invalid("surrogate is \"" + name + "\", expected clip, cispo, sapo or gspo");
}

/// Fields without a default here are required. Ranges are checked by the kernels.
inline Objective objective_from(const Napi::Value& value) {
  if (!value.IsObject()) invalid("objective must be an object");
  const auto object = value.As<Napi::Object>();
  Objective objective;
  if (present(object.Get("surrogate"))) objective.surrogate = surrogate_from(string(object, "surrogate"));
  if (present(object.Get("ratioCap"))) objective.ratio_cap = number(object, "ratioCap");
  if (present(object.Get("sapoTauPositive"))) objective.sapo_tau_positive = number(object, "sapoTauPositive");
  if (present(object.Get("sapoTauNegative"))) objective.sapo_tau_negative = number(object, "sapoTauNegative");
  objective.penalty = penalty_from(string(object, "penalty"));
  objective.kl_coef = number(object, "klCoef");
  objective.entropy_coef = number(object, "entropyCoef");
  objective.clip_low = number(object, "clipLow");
  objective.clip_high = number(object, "clipHigh");
  objective.temperature = number(object, "temperature");
  objective.max_log_ratio = number(object, "maxLogRatio");
  return objective;
}

/// The fields of ObjectiveMetrics in TypeScript.
inline Napi::Value metrics_to_js(Napi::Env env, const Metrics& metrics) {
  auto object = Napi::Object::New(env);
  object.Set("tokens", static_cast<double>(metrics.tokens));
  object.Set("loss", metrics.loss);
  object.Set("klSum", metrics.kl_sum);
  object.Set("entropySum", metrics.entropy_sum);
  object.Set("ratioSum", metrics.ratio_sum);
  object.Set("approxKlSum", metrics.approx_kl_sum);
  object.Set("clippedLow", static_cast<double>(metrics.clipped_low));
  object.Set("clippedHigh", static_cast<double>(metrics.clipped_high));
  object.Set("klClamped", static_cast<double>(metrics.kl_clamped));
  object.Set("ratioMin", metrics.ratio_min);
  object.Set("ratioMax", metrics.ratio_max);
  return object;
}

}  // namespace rapo::bindings
