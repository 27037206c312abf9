#include "model/qwen2.h"

#include <algorithm>

namespace rapo {

const ops::Rope& Qwen2::rope(std::int64_t positions, const at::Tensor& like) {
  if (!rope_.cos.defined() || rope_.cos.size(0) < positions) {
    const std::int64_t grown = std::max<std::int64_t>(positions * 2, 128);
    rope_ = ops::make_rope(grown, config_.head_dim, config_.rope_theta, like.scalar_type());
    rope_.cos = rope_.cos.to(like.device());
    rope_.sin = rope_.sin.to(like.device());
  }
  return rope_;
}

namespace {

/// The matrices of a layer: where their weights, their adapter's term and both prepared for products are.
struct Matrix {
  at::Tensor LayerTensors::* weight;
  LowRank AdapterLayer::* low;
  Projection ReadyWeights::Layer::* ready;
};
constexpr Matrix kMatrices[] = {
    {&LayerTensors::qkv, &AdapterLayer::qkv, &ReadyWeights::Layer::qkv},
    {&LayerTensors::o, &AdapterLayer::o, &ReadyWeights::Layer::o},
    {&LayerTensors::gate_up, &AdapterLayer::gate_up, &ReadyWeights::Layer::gate_up},
    {&LayerTensors::down, &AdapterLayer::down, &ReadyWeights::Layer::down},
};

}  // namespace

ReadyWeights::ReadyWeights(const ops::Backend& ops, const ModelTensors& w)
    : layers(w.layers.size()), head(ops.prepare(w.head)) {
  for (std::size_t i = 0; i < layers.size(); ++i) {
    for (const Matrix& m : kMatrices) (layers[i].*m.ready).weight = ops.prepare(w.layers[i].*m.weight);
  }
}

void ReadyWeights::add(const ops::Backend& ops, const AdapterTensors& adapter, double scaling) {
  for (std::size_t i = 0; i < layers.size(); ++i) {
    for (const Matrix& m : kMatrices) (layers[i].*m.ready).low = {ops, adapter[i].*m.low, scaling};
  }
}

void ReadyWeights::merge(const ops::Backend& ops, const ModelTensors& w, const Adapter& adapter,
                         std::uint64_t key) {
  std::uint64_t stream = 0;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    for (const Matrix& m : kMatrices) {
      const LowRank& low = adapter.tensors[i].*m.low;
      const ops::RoundingNumbers numbers{key, stream++};
      if (!low.parts.empty())
        (layers[i].*m.ready).weight = ops.prepare(adapter.merged(ops, w.layers[i].*m.weight, low, numbers));
    }
  }
}

at::Tensor Qwen2::project(const at::Tensor& x, const Projection& matrix, const at::Tensor& start,
                          at::Tensor* low) const {
  auto y = ops_.linear(x, matrix.weight, start);
  if (matrix.low.parts.empty()) return y;
  const auto h = matrix.low.down(ops_, x);
  matrix.low.add_up(ops_, h, y);
  if (low) *low = h;
  return y;
}

at::Tensor Qwen2::project_backward(const at::Tensor& dy, const at::Tensor& x, const Projection& matrix,
                                   const at::Tensor& low, at::Tensor& grad, LowRank& low_grad) const {
  if (grad.defined()) ops_.add_weight_grad(grad, dy, x);
  auto dx = ops_.linear_backward(dy, matrix.weight.weight);
  if (!matrix.low.parts.empty()) matrix.low.backward(ops_, dy, x, low, low_grad, dx);
  return dx;
}

at::Tensor Qwen2::normed_heads(const LayerTensors& layer, const at::Tensor& qkv, at::Tensor* rstd) const {
  if (!layer.q_norm.defined()) return qkv;
  return ops_.head_norm(head_shape(), qkv, layer.q_norm, layer.k_norm, config_.rms_norm_eps, rstd);
}

at::Tensor Qwen2::layer_forward(const LayerTensors& layer, const ReadyWeights::Layer& ready,
                                const std::function<at::Tensor(const at::Tensor& qkv)>& attend,
                                LayerActivations& a, bool keep, bool whole) {
  a.normed = ops_.rms_norm(a.x, layer.input_norm, config_.rms_norm_eps, keep ? &a.rstd : nullptr);
  a.qkv = project(a.normed, ready.qkv, layer.qkv_bias, &a.low_qkv);
  a.attended = attend(normed_heads(layer, a.qkv, nullptr));
  a.middle = project(a.attended, ready.o, a.x, &a.low_o);
  a.normed2 = ops_.rms_norm(a.middle, layer.post_norm, config_.rms_norm_eps, keep ? &a.rstd2 : nullptr);
  a.gate_up = project(a.normed2, ready.gate_up, {}, &a.low_gate_up);
  a.gated = ops_.swiglu(a.gate_up);
  if (whole) return project(a.gated, ready.down, a.middle, &a.low_down);
  if (!ready.down.low.parts.empty()) a.low_down = ready.down.low.down(ops_, a.gated);
  return {};
}

at::Tensor Qwen2::forward(const ModelTensors& w, const ReadyWeights& ready, const TrunkInput& input,
                          const Control& control, TrunkActivations* keep, KeyValues* key_values) {
  const auto& rotation = rope(input.longest, w.embed);
  auto x = ops_.embed(w.embed, input.token_ids.data(), static_cast<std::int64_t>(input.token_ids.size()));
  const bool keep_all = keep && !keep->inputs_only;
  for (std::size_t i = 0; i < w.layers.size(); ++i) {
    control.check();
    LayerActivations a;
    a.x = x;
    at::Tensor kv;
    const auto attend = [&](const at::Tensor& qkv) {
      return ops_.attention(head_shape(), input, rotation, qkv, keep_all ? &a.lse : nullptr,
                            key_values ? &kv : nullptr);
    };
    x = layer_forward(w.layers[i], ready.layers[i], attend, a, keep_all);
    if (key_values) key_values->push_back(std::move(kv));
    if (!keep) continue;
    if (keep_all) {
      keep->layers.push_back(std::move(a));
    } else {
      keep->layers.emplace_back();
      keep->layers.back().x = a.x;
    }
  }
  if (keep) keep->x = x;
  return ops_.rms_norm(x, w.norm, config_.rms_norm_eps, keep ? &keep->rstd : nullptr);
}

void Qwen2::backward(const ModelTensors& w, const ReadyWeights& ready, Gradients& grads,
                     const TrunkInput& input, TrunkActivations& kept, const at::Tensor& dhidden,
                     const Control& control) {
  AdapterLayer none;
  auto dx = at::zeros_like(kept.x);
  ops_.rms_norm_backward(kept.x, w.norm, kept.rstd, dhidden, dx, grads.weights.norm);
  const auto section_of = [](std::size_t layer) { return static_cast<std::int64_t>(layer) + 1; };
  grads.end(section_of(w.layers.size()));
  for (std::size_t i = w.layers.size(); i-- > 0;) {
    control.check();
    grads.begin(section_of(i));
    const LayerTensors& layer = w.layers[i];
    const ReadyWeights::Layer& matrices = ready.layers[i];
    LayerTensors& grad = grads.weights.layers[i];
    AdapterLayer& low_grad = grads.adapter.empty() ? none : grads.adapter[i];
    LayerActivations a = std::move(kept.layers[i]);
    if (kept.inputs_only) {
      const auto attend = [&](const at::Tensor& qkv) {
        return ops_.attention(head_shape(), input, rope_, qkv, &a.lse, nullptr);
      };
      layer_forward(layer, matrices, attend, a, true, false);
    }

    // The residual passes dx on unchanged; each branch adds its own gradient.
    const auto dgated = project_backward(dx, a.gated, matrices.down, a.low_down, grad.down, low_grad.down);
    const auto dgate_up = ops_.swiglu_backward(a.gate_up, dgated);
    const auto dnormed2 = project_backward(dgate_up, a.normed2, matrices.gate_up, a.low_gate_up, grad.gate_up,
                                           low_grad.gate_up);
    ops_.rms_norm_backward(a.middle, layer.post_norm, a.rstd2, dnormed2, dx, grad.post_norm);

    const auto dattended = project_backward(dx, a.attended, matrices.o, a.low_o, grad.o, low_grad.o);
    at::Tensor head_rstd;
    auto dqkv = ops_.attention_backward(head_shape(), input, rope_, normed_heads(layer, a.qkv, &head_rstd),
                                        a.attended, a.lse, dattended);
    if (layer.q_norm.defined())
      dqkv = ops_.head_norm_backward(head_shape(), a.qkv, layer.q_norm, layer.k_norm, head_rstd, dqkv,
                                     grad.q_norm, grad.k_norm);
    if (grad.qkv_bias.defined()) ops::add_bias_grad(grad.qkv_bias, dqkv);
    const auto dnormed = project_backward(dqkv, a.normed, matrices.qkv, a.low_qkv, grad.qkv, low_grad.qkv);
    ops_.rms_norm_backward(a.x, layer.input_norm, a.rstd, dnormed, dx, grad.input_norm);
    grads.end(section_of(i));
  }
  grads.begin(0);
  if (grads.weights.embed.defined()) ops_.embed_backward(grads.weights.embed, input.token_ids.data(), dx);
  grads.end(0);
}

at::Tensor Qwen2::decode(const ModelTensors& w, const ReadyWeights& ready, at::Tensor x,
                         const Attend& attend) {
  for (std::size_t i = 0; i < w.layers.size(); ++i) {
    LayerActivations a;
    a.x = std::move(x);
    x = layer_forward(
        w.layers[i], ready.layers[i],
        [&](const at::Tensor& qkv) { return attend(static_cast<std::int64_t>(i), qkv); }, a, false);
  }
  return ops_.rms_norm(x, w.norm, config_.rms_norm_eps, nullptr);
}

}  // namespace rapo
