#include "model/qwen2.h"

#include <algorithm>

namespace rapo {
namespace {

constexpr std::int64_t kAlign = 32;  // elements: matrices begin at 64 bytes also in bfloat16

}  // namespace

Layout::Layout(const ModelConfig& config) : config_(config) {
  const auto& c = config_;
  add("model.embed_tokens.weight", {c.vocab_size, c.hidden_size});
  for (std::int64_t i = 0; i < c.layers; ++i) {
    const std::string layer = "model.layers." + std::to_string(i) + ".";
    add(layer + "input_layernorm.weight", {c.hidden_size});
    add(layer + "self_attn.q_proj.weight", {c.q_size(), c.hidden_size});
    add(layer + "self_attn.k_proj.weight", {c.kv_size(), c.hidden_size}, false);
    add(layer + "self_attn.v_proj.weight", {c.kv_size(), c.hidden_size}, false);
    add(layer + "self_attn.q_proj.bias", {c.q_size()});
    add(layer + "self_attn.k_proj.bias", {c.kv_size()}, false);
    add(layer + "self_attn.v_proj.bias", {c.kv_size()}, false);
    add(layer + "self_attn.o_proj.weight", {c.hidden_size, c.q_size()});
    add(layer + "post_attention_layernorm.weight", {c.hidden_size});
    add(layer + "mlp.gate_proj.weight", {c.intermediate_size, c.hidden_size});
    add(layer + "mlp.up_proj.weight", {c.intermediate_size, c.hidden_size}, false);
    add(layer + "mlp.down_proj.weight", {c.hidden_size, c.intermediate_size});
  }
  add("model.norm.weight", {c.hidden_size});
  if (!c.tied_embeddings) add("lm_head.weight", {c.vocab_size, c.hidden_size});
}

void Layout::add(const std::string& name, std::vector<std::int64_t> shape, bool align) {
  if (align) flat_size_ = (flat_size_ + kAlign - 1) / kAlign * kAlign;
  Entry entry;
  entry.name = name;
  entry.shape = std::move(shape);
  entry.size = 1;
  for (const auto size : entry.shape) {
    if (__builtin_mul_overflow(entry.size, size, &entry.size)) {
      throw Error(ErrorCode::kUnsupported, "tensor \"" + name + "\" is too large");
    }
  }
  entry.offset = flat_size_;
  if (__builtin_add_overflow(flat_size_, entry.size, &flat_size_) || flat_size_ > (std::int64_t{1} << 48)) {
    throw Error(ErrorCode::kUnsupported, "the model is too large");
  }
  parameters_ += entry.size;
  entries_.push_back(std::move(entry));
}

ModelTensors Layout::map(const at::Tensor& flat) const {
  std::size_t next = 0;
  // The next `count` entries as one tensor.
  const auto take = [&](std::size_t count) {
    const Entry& first = entries_[next];
    std::vector<std::int64_t> shape = first.shape;
    std::int64_t size = first.size;
    for (std::size_t i = 1; i < count; ++i) {
      shape[0] += entries_[next + i].shape[0];
      size += entries_[next + i].size;
    }
    next += count;
    return flat.narrow(0, first.offset, size).view(shape);
  };
  ModelTensors out;
  out.embed = take(1);
  for (std::int64_t i = 0; i < config_.layers; ++i) {
    LayerTensors layer;
    layer.input_norm = take(1);
    layer.qkv = take(3);
    layer.qkv_bias = take(3);
    layer.o = take(1);
    layer.post_norm = take(1);
    layer.gate_up = take(2);
    layer.down = take(1);
    out.layers.push_back(std::move(layer));
  }
  out.norm = take(1);
  out.head = config_.tied_embeddings ? out.embed : take(1);
  return out;
}

std::vector<StoredTensor> Layout::stored(const at::Tensor& flat, const std::string& prefix) const {
  std::vector<StoredTensor> out;
  const auto* data = static_cast<const std::byte*>(flat.data_ptr());
  const std::size_t width = flat.element_size();
  for (const Entry& entry : entries_) {
    StoredTensor tensor;
    tensor.name = prefix + entry.name;
    tensor.dtype = flat.scalar_type() == at::kFloat ? "F32" : "BF16";
    tensor.shape = entry.shape;
    tensor.data = data + static_cast<std::size_t>(entry.offset) * width;
    tensor.bytes = static_cast<std::size_t>(entry.size) * width;
    out.push_back(std::move(tensor));
  }
  return out;
}

const ops::Rope& Qwen2::rope(std::int64_t positions, const at::Tensor& like) {
  if (!rope_.cos.defined() || rope_.cos.size(0) < positions) {
    const std::int64_t grown = std::max<std::int64_t>(positions * 2, 128);
    rope_ = ops::make_rope(grown, config_.head_dim, config_.rope_theta, like.scalar_type());
    rope_.cos = rope_.cos.to(like.device());
    rope_.sin = rope_.sin.to(like.device());
  }
  return rope_;
}

ReadyWeights::ReadyWeights(const ModelTensors& w) : head(ops::prepare(w.head)) {
  for (const LayerTensors& layer : w.layers) {
    layers.push_back({ops::prepare(layer.qkv), ops::prepare(layer.o), ops::prepare(layer.gate_up),
                      ops::prepare(layer.down)});
  }
}

at::Tensor Qwen2::layer_forward(const LayerTensors& layer, const ReadyWeights::Layer& linear,
                                const TrunkInput& input, const ops::Rope& rotation, LayerActivations& a,
                                bool keep, at::Tensor* kv, bool whole) {
  a.normed = ops::rms_norm(a.x, layer.input_norm, config_.rms_norm_eps, keep ? &a.rstd : nullptr);
  a.qkv = ops::linear(a.normed, linear.qkv, layer.qkv_bias);
  a.attended = ops::attention(head_shape(), input, rotation, a.qkv, keep ? &a.lse : nullptr, kv);
  a.middle = ops::linear(a.attended, linear.o, a.x);
  a.normed2 = ops::rms_norm(a.middle, layer.post_norm, config_.rms_norm_eps, keep ? &a.rstd2 : nullptr);
  a.gate_up = ops::linear(a.normed2, linear.gate_up);
  a.gated = ops::swiglu(a.gate_up);
  return whole ? ops::linear(a.gated, linear.down, a.middle) : at::Tensor();
}

at::Tensor Qwen2::forward(const ModelTensors& w, const ReadyWeights& ready, const TrunkInput& input,
                          const Control& control, TrunkActivations* keep, KeyValues* key_values) {
  const auto& rotation = rope(input.longest, w.embed);
  auto x =
      ops::gather_rows(w.embed, input.token_ids.data(), static_cast<std::int64_t>(input.token_ids.size()));
  const bool keep_all = keep && !keep->inputs_only;
  for (std::size_t i = 0; i < w.layers.size(); ++i) {
    control.check();
    LayerActivations a;
    a.x = x;
    at::Tensor kv;
    x = layer_forward(w.layers[i], ready.layers[i], input, rotation, a, keep_all, key_values ? &kv : nullptr);
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
  return ops::rms_norm(x, w.norm, config_.rms_norm_eps, keep ? &keep->rstd : nullptr);
}

void Qwen2::backward(const ModelTensors& w, const ReadyWeights& ready, ModelTensors& grads,
                     const TrunkInput& input, TrunkActivations& kept, const at::Tensor& dhidden) {
  auto dx = at::zeros_like(kept.x);
  ops::rms_norm_backward(kept.x, w.norm, kept.rstd, dhidden, dx, grads.norm);
  for (std::size_t i = w.layers.size(); i-- > 0;) {
    const LayerTensors& layer = w.layers[i];
    LayerTensors& grad = grads.layers[i];
    LayerActivations a = std::move(kept.layers[i]);
    if (kept.inputs_only) layer_forward(layer, ready.layers[i], input, rope_, a, true, nullptr, false);

    // dx flows unchanged along the residual; each branch adds its share to it.
    ops::add_weight_grad(grad.down, dx, a.gated);
    const auto dgate_up = ops::swiglu_backward(a.gate_up, ops::linear_backward(dx, layer.down));
    ops::add_weight_grad(grad.gate_up, dgate_up, a.normed2);
    ops::rms_norm_backward(a.middle, layer.post_norm, a.rstd2, ops::linear_backward(dgate_up, layer.gate_up),
                           dx, grad.post_norm);

    ops::add_weight_grad(grad.o, dx, a.attended);
    const auto dqkv = ops::attention_backward(head_shape(), input, rope_, a.qkv, a.attended, a.lse,
                                              ops::linear_backward(dx, layer.o));
    ops::add_weight_grad(grad.qkv, dqkv, a.normed);
    ops::add_bias_grad(grad.qkv_bias, dqkv);
    ops::rms_norm_backward(a.x, layer.input_norm, a.rstd, ops::linear_backward(dqkv, layer.qkv), dx,
                           grad.input_norm);
  }
  ops::scatter_add_rows(grads.embed, input.token_ids.data(), dx);
}

at::Tensor Qwen2::decode(const ModelTensors& w, const ReadyWeights& ready,
                         const std::vector<std::int32_t>& token_ids, const DecodeRows& rows) {
  const auto last = *std::max_element(rows.positions.begin(), rows.positions.end());
  const auto& rotation = rope(last + 1, w.embed);
  const auto x = ops::gather_rows(w.embed, token_ids.data(), static_cast<std::int64_t>(token_ids.size()));
  return decode_layers(w, ready, x, [&](std::int64_t layer, const at::Tensor& qkv) {
    return ops::decode_attention(head_shape(), rows.blocks, rows.positions, rotation, qkv,
                                 layer * cache_block_size());
  });
}

at::Tensor Qwen2::decode(const ModelTensors& w, const ReadyWeights& ready, ops::DecodeBatch batch,
                         const ops::Cache& cache) {
  ops::aten::place_batch(batch, cache, rope(batch.longest + 1, w.embed));
  return decode_layers(w, ready, w.embed.index_select(0, batch.token_ids),
                       [&](std::int64_t layer, const at::Tensor& qkv) {
                         return ops::aten::decode_attention(head_shape(), cache, layer, batch, qkv);
                       });
}

at::Tensor Qwen2::decode_layers(const ModelTensors& w, const ReadyWeights& ready, at::Tensor x,
                                const std::function<at::Tensor(std::int64_t, const at::Tensor&)>& attend) {
  for (std::size_t i = 0; i < w.layers.size(); ++i) {
    const LayerTensors& layer = w.layers[i];
    const ReadyWeights::Layer& linear = ready.layers[i];
    auto normed = ops::rms_norm(x, layer.input_norm, config_.rms_norm_eps);
    const auto qkv = ops::linear(normed, linear.qkv, layer.qkv_bias);
    x = ops::linear(attend(static_cast<std::int64_t>(i), qkv), linear.o, x);
    normed = ops::rms_norm(x, layer.post_norm, config_.rms_norm_eps);
    x = ops::linear(ops::swiglu(ops::linear(normed, linear.gate_up)), linear.down, x);
  }
  return ops::rms_norm(x, w.norm, config_.rms_norm_eps);
}

}  // namespace rapo
