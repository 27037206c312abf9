#include "model/optimizer.h"

#include <cmath>
#include <cstring>

#include "files/write.h"

namespace rapo {

Optimizer::Optimizer(const ops::Backend& ops, const FlatLayout& layout, const AdamW& params,
                     double max_grad_norm, at::Tensor master, at::Tensor weights)
    : ops_(ops),
      layout_(layout),
      params_(params),
      max_grad_norm_(max_grad_norm),
      master_(std::move(master)),
      weights_(std::move(weights)),
      m_(at::zeros_like(master_)),
      v_(at::zeros_like(master_)) {
  for (const FlatLayout::Entry& entry : layout.entries()) {
    ranges_.push_back({entry.offset, entry.size, entry.is_matrix()});
  }
}

StepResult Optimizer::step(at::Tensor& grad, double learning_rate, const Control& control) {
  StepResult result;
  result.grad_norm = ops_.norm_of(grad);
  if (!std::isfinite(result.grad_norm)) {
    result.skipped = true;
    return result;
  }
  ++steps_;
  const double scale = result.grad_norm > max_grad_norm_ ? max_grad_norm_ / result.grad_norm : 1;
  ops::AdamWBuffers buffers{master_, grad, m_, v_};
  ops_.adamw(buffers, ranges_, {params_, learning_rate, scale, steps_}, control);
  publish();
  return result;
}

void Optimizer::publish() {
  if (weights_.scalar_type() != at::kFloat) ops_.round_weights(master_, weights_);
}

void Optimizer::save(const std::string& file, const Control& control) const {
  std::vector<StoredTensor> tensors;
  std::vector<at::Tensor> held;  // owns the memory that `tensors` points to
  for (const auto& [prefix, flat] :
       {std::pair<const char*, at::Tensor>{"master.", master_}, {"exp_avg.", m_}, {"exp_avg_sq.", v_}}) {
    held.push_back(flat.to(at::kCPU));
    for (auto& tensor : layout_.stored(held.back(), prefix)) tensors.push_back(std::move(tensor));
  }
  write_safetensors(file, tensors, {{"format", "rapo-state-1"}, {"steps", std::to_string(steps_)}}, control);
}

void Optimizer::load(const std::string& file, Control& control) {
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
  std::vector<at::Tensor>
      held;  // the flat buffers themselves on the CPU; copies of the buffers of another device
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
  control.committed = true;
  control.total = 3 * layout_.parameters();
  for (const auto& [to, from] : copies) {
    control.check();
    std::memcpy(to, from->data, from->bytes);
    control.done += static_cast<std::int64_t>(from->bytes / sizeof(float));
  }
  std::size_t next = 0;
  for (at::Tensor* flat : {&master_, &m_, &v_}) {
    if (!flat->is_cpu()) flat->copy_(held[next]);
    ++next;
  }
  steps_ = std::stoll(steps->second);
  publish();
}

}  // namespace rapo
