// Conversion of Objective, DType and Metrics between JS (lib/loss/objective.ts) and the kernels' plain
// structs.
#pragma once

#include <napi.h>

#include <iterator>
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
#define RAPO_FROM(penalty, js, ...)        \
  if (name == js) return Penalty::penalty; \
  known += (known.empty() ? "" : ", ") + std::string(js);
  RAPO_PENALTIES(RAPO_FROM)
#undef RAPO_FROM
  invalid("penalty is \"" + name + "\", expected one of " + known);
}

inline Surrogate surrogate_from(const std::string& name) {
  std::string known;
#define RAPO_FROM(surrogate, js, ...)          \
  if (name == js) return Surrogate::surrogate; \
  known += (known.empty() ? "" : ", ") + std::string(js);
  RAPO_SURROGATES(RAPO_FROM)
#undef RAPO_FROM
  invalid("surrogate is \"" + name + "\", expected one of " + known);
}

/// Fields that are left out get their defaults. The kernels check the ranges.
inline Objective objective_from(const Napi::Value& value) {
  if (!value.IsObject()) invalid("objective must be an object");
  const auto object = value.As<Napi::Object>();
  Objective objective;
  if (present(object.Get("surrogate"))) objective.surrogate = surrogate_from(string(object, "surrogate"));
  objective.penalty = penalty_from(string(object, "penalty"));
#define RAPO_READ(member, js, ...)                         \
  if (const auto x = object.Get(js); present(x)) {         \
    if (!x.IsNumber()) invalid(js " must be a number");    \
    objective.member = x.As<Napi::Number>().DoubleValue(); \
  }
  RAPO_OBJECTIVE_NUMBERS(RAPO_READ)
#undef RAPO_READ
  return objective;
}

/// RAPO_OBJECTIVE_NUMBERS and the other lists as JS values, for the test that compares them with
/// TypeScript's.
inline Napi::Value lists_to_js(Napi::Env env) {
  auto numbers = Napi::Object::New(env);
  auto names = [&](const char* const* begin, const char* const* end) {
    auto array = Napi::Array::New(env);
    for (; begin != end; ++begin) array.Set(array.Length(), *begin);
    return array;
  };
#define RAPO_NUMBER(member, js, value, low, open, high) \
  {                                                     \
    auto number = Napi::Object::New(env);               \
    number.Set("default", static_cast<double>(value));  \
    number.Set("low", static_cast<double>(low));        \
    number.Set("open", open);                           \
    number.Set("high", static_cast<double>(high));      \
    numbers.Set(js, number);                            \
  }
  RAPO_OBJECTIVE_NUMBERS(RAPO_NUMBER)
#undef RAPO_NUMBER
#define RAPO_SECOND(first, name, ...) name,
#define RAPO_THIRD(first, type, name, ...) name,
  const char* const penalties[] = {RAPO_PENALTIES(RAPO_SECOND)};
  const char* const surrogates[] = {RAPO_SURROGATES(RAPO_SECOND)};
  const char* const arrays[] = {RAPO_ROW_ARRAYS(RAPO_THIRD)};
  const char* const outputs[] = {RAPO_ROW_OUTPUTS(RAPO_THIRD)};
#undef RAPO_SECOND
#undef RAPO_THIRD
  auto lists = Napi::Object::New(env);
  lists.Set("numbers", numbers);
  lists.Set("penalties", names(std::begin(penalties), std::end(penalties)));
  lists.Set("surrogates", names(std::begin(surrogates), std::end(surrogates)));
  lists.Set("rowArrays", names(std::begin(arrays), std::end(arrays)));
  lists.Set("rowOutputs", names(std::begin(outputs), std::end(outputs)));
  return lists;
}

/// The fields are those of ObjectiveMetrics in TypeScript.
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
