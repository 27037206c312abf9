#include "model/qwen2.h"

#include <algorithm>

namespace rapo {
namespace {

constexpr std::int64_t kAlign = 32;  // elements: matrices begin at a multiple of 64 bytes in bfloat16 too

/// One tensor of a layer. Neighbours with the same `member` lie end to end and form one matrix, so that q, k
/// and v (or gate and up) are one product. parts_of() lists the tensors of a family of models. Members of
/// LayerTensors that a family does not have stay undefined, and layer_forward() and backward() leave them out.
struct LayerPart {
  const char* name;  // what follows "model.layers.N."
  at::Tensor LayerTensors::* member;
  std::int64_t (*rows)(const ModelConfig&);
  std::int64_t (*columns)(const ModelConfig&);  // null if the tensor is a vector
};

std::int64_t hidden(const ModelConfig& c) { return c.hidden_size; }
std::int64_t wide(const ModelConfig& c) { return c.intermediate_size; }
std::int64_t queries(const ModelConfig& c) { return c.q_size(); }
std::int64_t keys(const ModelConfig& c) { return c.kv_size(); }
std::int64_t head(const ModelConfig& c) { return c.head_dim; }

using LayerParts = std::vector<LayerPart>;

LayerParts parts_of(Architecture architecture) {
  const bool has_biases = architecture == Architecture::kQwen2;
  const bool has_head_norms = architecture == Architecture::kQwen3;
  LayerParts parts{
      {"input_layernorm.weight", &LayerTensors::input_norm, hidden, nullptr},
      {"self_attn.q_proj.weight", &LayerTensors::qkv, queries, hidden},
      {"self_attn.k_proj.weight", &LayerTensors::qkv, keys, hidden},
      {"self_attn.v_proj.weight", &LayerTensors::qkv, keys, hidden},
  };
  const auto add = [&](const LayerParts& more) { parts.insert(parts.end(), more.begin(), more.end()); };
  if (has_biases) {
    add({{"self_attn.q_proj.bias", &LayerTensors::qkv_bias, queries, nullptr},
         {"self_attn.k_proj.bias", &LayerTensors::qkv_bias, keys, nullptr},
         {"self_attn.v_proj.bias", &LayerTensors::qkv_bias, keys, nullptr}});
  }
  if (has_head_norms) {
    add({{"self_attn.q_norm.weight", &LayerTensors::q_norm, head, nullptr},
         {"self_attn.k_norm.weight", &LayerTensors::k_norm, head, nullptr}});
  }
  add({{"self_attn.o_proj.weight", &LayerTensors::o, hidden, queries},
       {"post_attention_layernorm.weight", &LayerTensors::post_norm, hidden, nullptr},
       {"mlp.gate_proj.weight", &LayerTensors::gate_up, wide, hidden},
       {"mlp.up_proj.weight", &LayerTensors::gate_up, wide, hidden},
       {"mlp.down_proj.weight", &LayerTensors::down, hidden, wide}});
  return parts;
}

}  // namespace

Layout::Layout(const ModelConfig& config) : config_(config) {
  const auto& c = config_;
  const LayerParts parts = parts_of(c.architecture);
  add("model.embed_tokens.weight", {c.vocab_size, c.hidden_size});
  for (std::int64_t i = 0; i < c.layers; ++i) {
    at::Tensor LayerTensors::* last = nullptr;
    for (const LayerPart& part : parts) {
      std::vector<std::int64_t> shape{part.rows(c)};
      if (part.columns) shape.push_back(part.columns(c));
      add("model.layers." + std::to_string(i) + "." + part.name, std::move(shape), part.member != last);
      last = part.member;
    }
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
  // One tensor that covers the next `count` entries.
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
  const LayerParts parts = parts_of(config_.architecture);
  ModelTensors out;
  out.embed = take(1);
  for (std::int64_t i = 0; i < config_.layers; ++i) {
    LayerTensors layer;
    for (auto part = parts.begin(); part != parts.end();) {
      const auto end = std::find_if(part, parts.end(),
                                    [&](const LayerPart& other) { return other.member != part->member; });
      layer.*part->member = take(static_cast<std::size_t>(end - part));
      part = end;
    }
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

ReadyWeights::ReadyWeights(const ops::Backend& ops, const ModelTensors& w) : head(ops.prepare(w.head)) {
  for (const LayerTensors& layer : w.layers) {
    layers.push_back(
        {ops.prepare(layer.qkv), ops.prepare(layer.o), ops.prepare(layer.gate_up), ops.prepare(layer.down)});
  }
}

at::Tensor Qwen2::normed_heads(const LayerTensors& layer, const at::Tensor& qkv, at::Tensor* rstd) const {
  if (!layer.q_norm.defined()) return qkv;
  return ops_.head_norm(head_shape(), qkv, layer.q_norm, layer.k_norm, config_.rms_norm_eps, rstd);
}

at::Tensor Qwen2::layer_forward(const LayerTensors& layer, const ReadyWeights::Layer& linear,
                                const std::function<at::Tensor(const at::Tensor& qkv)>& attend,
                                LayerActivations& a, bool keep, bool whole) {
  a.normed = ops_.rms_norm(a.x, layer.input_norm, config_.rms_norm_eps, keep ? &a.rstd : nullptr);
  a.qkv = ops_.linear(a.normed, linear.qkv, layer.qkv_bias);
  a.attended = attend(normed_heads(layer, a.qkv, nullptr));
  a.middle = ops_.linear(a.attended, linear.o, a.x);
  a.normed2 = ops_.rms_norm(a.middle, layer.post_norm, config_.rms_norm_eps, keep ? &a.rstd2 : nullptr);
  a.gate_up = ops_.linear(a.normed2, linear.gate_up, {});
  a.gated = ops_.swiglu(a.gate_up);
  return whole ? ops_.linear(a.gated, linear.down, a.middle) : at::Tensor();
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

void Qwen2::backward(const ModelTensors& w, const ReadyWeights& ready, ModelTensors& grads,
                     const TrunkInput& input, TrunkActivations& kept, const at::Tensor& dhidden,
                     const Control& control) {
  auto dx = at::zeros_like(kept.x);
  ops_.rms_norm_backward(kept.x, w.norm, kept.rstd, dhidden, dx, grads.norm);
  for (std::size_t i = w.layers.size(); i-- > 0;) {
    control.check();
    const LayerTensors& layer = w.layers[i];
    LayerTensors& grad = grads.layers[i];
    LayerActivations a = std::move(kept.layers[i]);
    if (kept.inputs_only) {
      const auto attend = [&](const at::Tensor& qkv) {
        return ops_.attention(head_shape(), input, rope_, qkv, &a.lse, nullptr);
      };
      layer_forward(layer, ready.layers[i], attend, a, true, false);
    }

    // The residual passes dx on unchanged; each branch adds its own gradient.
    ops_.add_weight_grad(grad.down, dx, a.gated);
    const auto dgate_up = ops_.swiglu_backward(a.gate_up, ops_.linear_backward(dx, layer.down));
    ops_.add_weight_grad(grad.gate_up, dgate_up, a.normed2);
    ops_.rms_norm_backward(a.middle, layer.post_norm, a.rstd2, ops_.linear_backward(dgate_up, layer.gate_up),
                           dx, grad.post_norm);

    ops_.add_weight_grad(grad.o, dx, a.attended);
    at::Tensor head_rstd;
    auto dqkv = ops_.attention_backward(head_shape(), input, rope_, normed_heads(layer, a.qkv, &head_rstd),
                                        a.attended, a.lse, ops_.linear_backward(dx, layer.o));
    if (layer.q_norm.defined())
      dqkv = ops_.head_norm_backward(head_shape(), a.qkv, layer.q_norm, layer.k_norm, head_rstd, dqkv,
                                     grad.q_norm, grad.k_norm);
    ops_.add_weight_grad(grad.qkv, dqkv, a.normed);
    if (grad.qkv_bias.defined()) ops::add_bias_grad(grad.qkv_bias, dqkv);
    ops_.rms_norm_backward(a.x, layer.input_norm, a.rstd, ops_.linear_backward(dqkv, layer.qkv), dx,
                           grad.input_norm);
  }
  ops_.embed_backward(grads.embed, input.token_ids.data(), dx);
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
