#include "model/adapter.h"

#include <algorithm>
#include <cmath>

#include "files/safetensors.h"
#include "model/weights.h"
#include "ops/philox.h"

namespace rapo {
namespace {

constexpr const char* kPrefix = "base_model.model.";

LowRank AdapterLayer::* member_of(at::Tensor LayerTensors::* matrix) {
  if (matrix == &LayerTensors::qkv) return &AdapterLayer::qkv;
  if (matrix == &LayerTensors::o) return &AdapterLayer::o;
  if (matrix == &LayerTensors::gate_up) return &AdapterLayer::gate_up;
  return &AdapterLayer::down;
}

/// The part of `name` before its last dot.
std::string stem(const std::string& name) { return name.substr(0, name.rfind('.')); }

}  // namespace

AdapterLayout::AdapterLayout(const ModelConfig& config, const LoraOptions& options) : layers_(config.layers) {
  std::int64_t column = 0;
  at::Tensor LayerTensors::* last = nullptr;
  for (const LayerPart& part : layer_parts(config.architecture)) {
    if (!part.columns) continue;
    if (part.member != last) column = 0;
    const std::string name = stem(part.name);
    const std::string module = name.substr(name.rfind('.') + 1);
    const auto& wanted = options.target_modules;
    if (std::find(wanted.begin(), wanted.end(), module) != wanted.end()) {
      const auto member = member_of(part.member);
      if (groups_.empty() || groups_.back().member != member)
        groups_.push_back({member, part.columns(config), {}});
      groups_.back().parts.push_back({name, column, part.rows(config)});
    }
    column += part.rows(config);
    last = part.member;
  }
  for (std::int64_t i = 0; i < layers_; ++i) {
    const std::string layer = kPrefix + ("model.layers." + std::to_string(i) + ".");
    for (const Group& group : groups_) {
      // The parts' A lie end to end and form one matrix.
      for (const Part& part : group.parts)
        add(layer + part.name + ".lora_A.weight", {options.r, group.columns}, &part == group.parts.data());
      for (const Part& part : group.parts) add(layer + part.name + ".lora_B.weight", {part.rows, options.r});
    }
  }
}

AdapterTensors AdapterLayout::map(const at::Tensor& flat) const {
  AdapterTensors out(static_cast<std::size_t>(layers_));
  std::size_t next = 0;
  for (AdapterLayer& layer : out) {
    for (const Group& group : groups_) {
      LowRank& low = layer.*group.member;
      low.a = view(flat, next, group.parts.size());
      next += group.parts.size();
      for (const Part& part : group.parts) low.parts.push_back({part.column, view(flat, next++)});
    }
  }
  return out;
}

std::int64_t AdapterLayout::adapted_size(const ModelConfig& config) const {
  std::int64_t size = 0;
  for (const LayerPart& part : layer_parts(config.architecture)) {
    if (!part.columns) continue;
    const auto has_term = [low = member_of(part.member)](const Group& group) { return group.member == low; };
    if (std::any_of(groups_.begin(), groups_.end(), has_term))
      size += part.rows(config) * part.columns(config);
  }
  return size * layers_;
}

Adapter::Adapter(const ModelConfig& config, const LoraOptions& options, DType dtype, at::Device device,
                 const Control& control)
    : layout(config, options), scaling(options.scaling), master(at::zeros({layout.flat_size()}, at::kFloat)) {
  if (options.file.empty()) {
    initialize(options.seed);
  } else {
    read(options.file, control);
  }
  master = master.to(device);
  flat = master.to(ops::scalar_type(dtype));
  tensors = layout.map(flat);
}

void Adapter::read(const std::string& file, const Control& control) {
  const SafetensorsFile stored(file);
  const auto fail = [&](const std::string& name, const std::string& why) {
    throw Error(ErrorCode::kFormat, file + ": tensor \"" + name + "\" " + why);
  };
  for (const auto& entry : layout.entries()) {
    control.check();
    const auto found = stored.tensors().find(entry.name);
    if (found == stored.tensors().end()) fail(entry.name, "is missing");
    if (found->second.shape != entry.shape) {
      fail(entry.name, "has the shape " + show_shape(found->second.shape) +
                           ", adapter_config.json and the model ask for " + show_shape(entry.shape));
    }
    auto to = master.narrow(0, entry.offset, entry.size);
    copy_stored(found->second, file, to);
  }
  for (const auto& [name, tensor] : stored.tensors()) {
    const auto is_same = [&name = name](const auto& entry) { return entry.name == name; };
    if (std::none_of(layout.entries().begin(), layout.entries().end(), is_same))
      fail(name, "does not belong to the adapter that adapter_config.json describes");
  }
}

void Adapter::initialize(std::uint64_t seed) {
  auto* data = master.data_ptr<float>();
  for (std::size_t e = 0; e < layout.entries().size(); ++e) {
    const auto& entry = layout.entries()[e];
    if (entry.name.find(".lora_A.") == std::string::npos) continue;
    const double bound = 1 / std::sqrt(static_cast<double>(entry.shape[1]));
    for (std::int64_t i = 0; i < entry.size; ++i) {
      const double u =
          (static_cast<double>(philox(seed, e, static_cast<std::uint64_t>(i))[0]) + 0.5) * 0x1.0p-32;
      data[entry.offset + i] = static_cast<float>(bound * (2 * u - 1));
    }
  }
}

at::Tensor Adapter::merged(const ops::Backend& ops, const at::Tensor& weight, const LowRank& low,
                           const ops::RoundingNumbers& numbers) const {
  constexpr std::int64_t kBytes = std::int64_t{8} << 20;  // of the sum, while it is float32
  constexpr std::int64_t kRows = loops::kRoundingBlock;
  const std::int64_t columns = weight.size(1), rank = low.parts.front().b.size(1);
  const std::int64_t at_once = std::max<std::int64_t>(1, kBytes / (4 * kRows * columns)) * kRows;
  const bool is_float = weight.scalar_type() == at::kFloat;
  const auto a = low.a.to(at::kFloat);
  auto out = at::empty_like(weight);
  for (std::int64_t first = 0; first < weight.size(0); first += at_once) {
    const std::int64_t rows = std::min(at_once, weight.size(0) - first);
    auto to = out.narrow(0, first, rows);
    auto sum = is_float ? to : at::empty({rows, columns}, to.options().dtype(at::kFloat));
    sum.copy_(weight.narrow(0, first, rows));
    std::int64_t at = 0;  // rows of A
    for (const LowRank::Part& part : low.parts) {
      const std::int64_t begin = std::max(first, part.column),
                         end = std::min(first + rows, part.column + part.b.size(0));
      if (begin < end) {
        const auto b = part.b.narrow(0, begin - part.column, end - begin).to(at::kFloat);
        auto of = sum.narrow(0, begin - first, end - begin);
        ops.add_weight_grad(of, b.t().mul(scaling).contiguous(), a.narrow(0, at, rank));
      }
      at += rank;
    }
    if (!is_float) ops.round_randomly(sum, to, numbers, first * columns);
  }
  return out;
}

at::Tensor Adapter::delta(const std::string& weight) const {
  const std::string module = stem(weight), name = kPrefix + module;
  if (weight != module + ".weight") return {};  // a bias
  const auto find = [&](const char* end) {
    for (const auto& entry : layout.entries()) {
      if (entry.name == name + end)
        return master.narrow(0, entry.offset, entry.size).view(entry.shape).to(at::kCPU);
    }
    return at::Tensor();
  };
  const auto a = find(".lora_A.weight");
  return a.defined() ? at::mm(find(".lora_B.weight"), a).mul_(scaling) : a;
}

ReadyLowRank::ReadyLowRank(const ops::Backend& ops, const LowRank& weights, double scaling)
    : scaling(scaling) {
  if (!weights.a.defined()) return;
  a = ops.prepare(weights.a);
  for (const LowRank::Part& part : weights.parts) parts.push_back({part.column, ops.prepare(part.b)});
}

at::Tensor ReadyLowRank::down(const ops::Backend& ops, const at::Tensor& x) const {
  auto low = ops.linear(x, a, {});
  return scaling == 1 ? low : low.mul_(scaling);
}

void ReadyLowRank::add_up(const ops::Backend& ops, const at::Tensor& low, at::Tensor& y) const {
  std::int64_t first = 0;
  for (const Part& part : parts) {
    const std::int64_t rank = part.b.weight.size(1);
    auto columns = y.narrow(1, part.column, part.b.weight.size(0));
    ops.add_linear(columns, low.narrow(1, first, rank), part.b);
    first += rank;
  }
}

void ReadyLowRank::backward(const ops::Backend& ops, const at::Tensor& dy, const at::Tensor& x,
                            const at::Tensor& low, LowRank& grads, at::Tensor& dx) const {
  std::vector<at::Tensor> dlow;
  std::int64_t first = 0;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    const at::Tensor& b = parts[i].b.weight;
    const auto columns = dy.narrow(1, parts[i].column, b.size(0));
    ops.add_weight_grad(grads.parts[i].b, columns, low.narrow(1, first, b.size(1)));
    dlow.push_back(ops.linear_backward(columns, b));
    first += b.size(1);
  }
  auto all = dlow.size() == 1 ? dlow.front() : at::cat(dlow, 1);
  if (scaling != 1) all.mul_(scaling);
  ops.add_weight_grad(grads.a, all, x);
  if (dx.defined()) ops.add_linear_backward(dx, all, a.weight);
}

}  // namespace rapo
