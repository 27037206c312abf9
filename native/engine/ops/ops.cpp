#include "ops/ops.h"

#include <ATen/ops/sum.h>

#include <cmath>

#include "error.h"

namespace rapo::ops {
namespace {

struct ModelDType {
  DType dtype;
  const char* stored;
  at::ScalarType scalar;
};
constexpr ModelDType kModelDTypes[] = {
#define RAPO_ENTRY(dtype, type, member, stored, scalar) {DType::dtype, stored, at::ScalarType::scalar},
    RAPO_MODEL_DTYPES(RAPO_ENTRY)
#undef RAPO_ENTRY
};

const ModelDType& entry(DType dtype) {
  std::string known;
  for (const auto& model : kModelDTypes) {
    if (model.dtype == dtype) return model;
    known += (known.empty() ? "" : " or ") + std::string(dtype_name(model.dtype));
  }
  throw Error(ErrorCode::kUnsupported, "dtype is " + std::string(dtype_name(dtype)) + ", must be " + known);
}

}  // namespace

void check_model_dtype(DType dtype) { entry(dtype); }

at::ScalarType scalar_type(DType dtype) { return entry(dtype).scalar; }

DType dtype_of(const at::Tensor& x) {
  for (const auto& model : kModelDTypes) {
    if (model.scalar == x.scalar_type()) return model.dtype;
  }
  throw Error(ErrorCode::kUnsupported,
              std::string("no model has the dtype ") + at::toString(x.scalar_type()));
}

const char* stored_name(DType dtype) { return entry(dtype).stored; }

Rope make_rope(std::int64_t positions, std::int64_t head_dim, double theta, at::ScalarType dtype) {
  const std::int64_t half = head_dim / 2;
  Rope rope{at::empty({positions, half}, at::kFloat), at::empty({positions, half}, at::kFloat)};
  std::vector<float> frequencies(static_cast<std::size_t>(half));
  for (std::int64_t i = 0; i < half; ++i) {
    // Powers and products in float32, as in transformers.
    frequencies[static_cast<std::size_t>(i)] =
        1.0f / std::pow(static_cast<float>(theta), static_cast<float>(2 * i) / static_cast<float>(head_dim));
  }
  auto* cos = rope.cos.data_ptr<float>();
  auto* sin = rope.sin.data_ptr<float>();
  for (std::int64_t t = 0; t < positions; ++t) {
    for (std::int64_t i = 0; i < half; ++i) {
      const float angle = static_cast<float>(t) * frequencies[static_cast<std::size_t>(i)];
      cos[t * half + i] = std::cos(angle);
      sin[t * half + i] = std::sin(angle);
    }
  }
  if (dtype != at::kFloat) {
    rope.cos = rope.cos.to(dtype).to(at::kFloat);
    rope.sin = rope.sin.to(dtype).to(at::kFloat);
  }
  return rope;
}

const Backend& backend_of(const std::string& name, at::Device device) {
  for (const Backend* backend : {&cpu_backend(), &aten_backend()}) {
    if (name == backend->name && (backend != &cpu_backend() || device.is_cpu())) return *backend;
  }
  if (!name.empty()) invalid("backend is \"" + name + "\", expected cpu (on the CPU alone) or aten");
  return device.is_cpu() ? cpu_backend() : aten_backend();
}

void add_bias_grad(at::Tensor& grad, const at::Tensor& dy) { grad.add_(at::sum(dy, {0}, false, at::kFloat)); }

}  // namespace rapo::ops
