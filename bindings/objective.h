// Objective, DType and Metrics between JS (lib/loss/objective.ts, lib/train/metrics.ts) and the kernels' plain structs.
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

/// Fields without a default here are required. Ranges are checked by the kernels. Takes what objective_to_js
/// made, too.
inline Objective objective_from(const Napi::Value& value) {
  if (value.IsExternal()) return *value.As<Napi::External<Objective>>().Data();
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

/// The objective as one opaque value: its properties need no looking up again.
inline Napi::Value objective_to_js(Napi::Env env, const Objective& objective) {
  return Napi::External<Objective>::New(env, new Objective(objective),
                                        [](Napi::Env, Objective* held) { delete held; });
}

/// Calls set(name, value) for every field, in the order of lib/train/metrics.ts.
template <class Set>
void each_metric(const Metrics& metrics, const Set& set) {
  set("tokens", static_cast<double>(metrics.tokens));
  set("loss", metrics.loss);
  set("klSum", metrics.kl_sum);
  set("entropySum", metrics.entropy_sum);
  set("ratioSum", metrics.ratio_sum);
  set("approxKlSum", metrics.approx_kl_sum);
  set("clippedLow", static_cast<double>(metrics.clipped_low));
  set("clippedHigh", static_cast<double>(metrics.clipped_high));
  set("klClamped", static_cast<double>(metrics.kl_clamped));
  set("ratioMin", metrics.ratio_min);
  set("ratioMax", metrics.ratio_max);
}

inline Napi::Value metrics_to_js(Napi::Env env, const Metrics& metrics) {
  auto object = Napi::Object::New(env);
  each_metric(metrics, [&](const char* name, double value) { object.Set(name, value); });
  return object;
}

/// Into a Float64Array with an element for each field.
inline void write_metrics(const Metrics& metrics, const Napi::Value& array) {
  const auto out = view<double>(array, "metrics");
  std::int64_t i = 0;
  each_metric(metrics, [&](const char*, double value) {
    if (i == out.size) invalid("metrics has too few elements");
    out.data[i++] = value;
  });
}

}  // namespace rapo::bindings
