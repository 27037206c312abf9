#include "model/optimizer.h"

#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/full.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "files/write.h"
#include "ops/ops_aten.h"

namespace rapo {
namespace {

constexpr std::int64_t kBlock = 65536;

/// Calls f(begin, end) for blocks of at most kBlock elements, over threads.
template <class F>
void for_blocks(std::int64_t begin, std::int64_t end, const F& f) {
  const std::int64_t blocks = (end - begin + kBlock - 1) / kBlock;
  ops::for_ranges(blocks, 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t b = first; b < last; ++b)
      f(begin + b * kBlock, std::min(end, begin + (b + 1) * kBlock));
  });
}

}  // namespace

double norm_of(const at::Tensor& flat) {
  if (ops::on_aten(flat)) return ops::aten::norm_of(flat);
  const auto* x = flat.data_ptr<float>();
  const std::int64_t n = flat.numel();
  std::vector<double> sums(static_cast<std::size_t>((n + kBlock - 1) / kBlock));
  for_blocks(0, n, [&](std::int64_t begin, std::int64_t end) {
    sums[static_cast<std::size_t>(begin / kBlock)] = loops::table().sum_squares(x + begin, end - begin);
  });
  double total = 0;
  for (const double s : sums) total += s;
  return std::sqrt(total);
}

Optimizer::Optimizer(const Layout& layout, const AdamW& params, double max_grad_norm, at::Tensor master,
                     at::Tensor weights)
    : layout_(layout),
      params_(params),
      max_grad_norm_(max_grad_norm),
      master_(std::move(master)),
      weights_(std::move(weights)),
      m_(at::zeros_like(master_)),
      v_(at::zeros_like(master_)) {}

StepResult Optimizer::step(at::Tensor& grad, double learning_rate) {
  StepResult result;
  result.grad_norm = norm_of(grad);
  if (!std::isfinite(result.grad_norm)) {
    result.skipped = true;
    return result;
  }
  ++steps_;
  const double t = static_cast<double>(steps_);
  if (ops::on_aten(grad)) {
    step_fused(grad, result.grad_norm > max_grad_norm_ ? max_grad_norm_ / result.grad_norm : 1,
               learning_rate);
    publish();
    return result;
  }
  loops::AdamWStep step{};
  step.beta1 = static_cast<float>(params_.beta1);
  step.beta2 = static_cast<float>(params_.beta2);
  step.rest1 = static_cast<float>(1 - params_.beta1);
  step.rest2 = static_cast<float>(1 - params_.beta2);
  step.eps = static_cast<float>(params_.eps);
  step.learning_rate = static_cast<float>(learning_rate);
  step.bias1 = static_cast<float>(1 - std::pow(params_.beta1, t));
  step.bias2 = static_cast<float>(1 - std::pow(params_.beta2, t));
  step.grad_scale =
      result.grad_norm > max_grad_norm_ ? static_cast<float>(max_grad_norm_ / result.grad_norm) : 1.0f;
  const auto* g = grad.data_ptr<float>();
  for (const Layout::Entry& entry : layout_.entries()) {
    step.weight_decay = entry.is_matrix() ? static_cast<float>(params_.weight_decay) : 0.0f;
    for_blocks(entry.offset, entry.offset + entry.size, [&](std::int64_t begin, std::int64_t end) {
      loops::table().adamw(master_.data_ptr<float>() + begin, g + begin, m_.data_ptr<float>() + begin,
                           v_.data_ptr<float>() + begin, end - begin, step);
    });
  }
  publish();
  return result;
}

void Optimizer::step_fused(at::Tensor& grad, double grad_scale, double learning_rate) {
  if (grad_scale != 1) grad.mul_(grad_scale);
  const auto t = at::full({}, static_cast<double>(steps_), grad.options());
  for (const bool matrices : {true, false}) {
    std::vector<at::Tensor> weights, grads, means, squares, steps;
    for (const Layout::Entry& entry : layout_.entries()) {
      if (entry.is_matrix() != matrices) continue;
      const auto of = [&](const at::Tensor& flat) { return flat.narrow(0, entry.offset, entry.size); };
      weights.push_back(of(master_));
      grads.push_back(of(grad));
      means.push_back(of(m_));
      squares.push_back(of(v_));
      steps.push_back(t);
    }
    at::_fused_adamw_(weights, grads, means, squares, {}, steps, learning_rate, params_.beta1, params_.beta2,
                      matrices ? params_.weight_decay : 0, params_.eps, false, false);
  }
}

void Optimizer::publish() {
  if (weights_.scalar_type() == at::kFloat) return;
  if (ops::on_aten(weights_)) {
    weights_.copy_(master_);
    return;
  }
  const auto* from = master_.data_ptr<float>();
  auto* to = static_cast<loops::BFloat16*>(weights_.data_ptr());
  for_blocks(0, master_.numel(), [&](std::int64_t begin, std::int64_t end) {
    loops::table().to_bf16(from + begin, to + begin, end - begin);
  });
}

void Optimizer::save(const std::string& file) const {
  std::vector<StoredTensor> tensors;
  std::vector<at::Tensor> held;  // what tensors point into
  for (const auto& [prefix, flat] :
       {std::pair<const char*, at::Tensor>{"master.", master_}, {"exp_avg.", m_}, {"exp_avg_sq.", v_}}) {
    held.push_back(flat.to(at::kCPU));
    for (auto& tensor : layout_.stored(held.back(), prefix)) tensors.push_back(std::move(tensor));
  }
  write_safetensors(file, tensors, {{"format", "rapo-state-1"}, {"steps", std::to_string(steps_)}});
}

void Optimizer::load(const std::string& file) {
  const SafetensorsFile state(file);
  const auto fail = [&](const std::string& message) {
    throw Error(ErrorCode::kFormat, file + ": " + message);
  };
  const auto format = state.metadata().find("format"), steps = state.metadata().find("steps");
  if (format == state.metadata().end() || format->second != "rapo-state-1" ||
      steps == state.metadata().end()) {
    fail("not a state file of rapo (metadata format and steps)");
  }
  if (steps->second.empty() || steps->second.size() > 15 ||
      steps->second.find_first_not_of("0123456789") != std::string::npos) {
    fail("metadata steps is \"" + steps->second + "\", not a number");
  }
  std::vector<std::pair<void*, const StoredTensor*>> copies;
  std::vector<at::Tensor> held;  // the flat buffers themselves on the CPU, copies of other devices'
  for (const auto& [prefix, flat] :
       {std::pair<const char*, at::Tensor>{"master.", master_}, {"exp_avg.", m_}, {"exp_avg_sq.", v_}}) {
    held.push_back(flat.to(at::kCPU));
    for (const StoredTensor& wanted : layout_.stored(held.back(), prefix)) {
      const auto found = state.tensors().find(wanted.name);
      if (found == state.tensors().end()) fail("tensor \"" + wanted.name + "\" is missing");
      if (found->second.dtype != wanted.dtype || found->second.shape != wanted.shape) {
        fail("tensor \"" + wanted.name + "\" does not have this model's shape and float32");
      }
      copies.emplace_back(const_cast<std::byte*>(wanted.data), &found->second);
    }
  }
  if (copies.size() != state.tensors().size()) fail("holds tensors that this model does not have");
  for (const auto& [to, from] : copies) std::memcpy(to, from->data, from->bytes);
  std::size_t next = 0;
  for (at::Tensor* flat : {&master_, &m_, &v_}) {
    if (!flat->is_cpu()) flat->copy_(held[next]);
    ++next;
  }
  steps_ = std::stoll(steps->second);
  publish();
}

}  // namespace rapo
