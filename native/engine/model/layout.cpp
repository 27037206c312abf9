#include "model/layout.h"

#include <algorithm>

#include "control.h"
#include "ops/ops.h"

namespace rapo {
namespace {

constexpr std::int64_t kAlign = 32;  // elements: matrices begin at a multiple of 64 bytes in bfloat16 too

std::int64_t hidden(const ModelConfig& c) { return c.hidden_size; }
std::int64_t wide(const ModelConfig& c) { return c.intermediate_size; }
std::int64_t queries(const ModelConfig& c) { return c.q_size(); }
std::int64_t keys(const ModelConfig& c) { return c.kv_size(); }
std::int64_t head(const ModelConfig& c) { return c.head_dim; }

}  // namespace

std::vector<LayerPart> layer_parts(Architecture architecture) {
  const bool has_biases = architecture == Architecture::kQwen2;
  const bool has_head_norms = architecture == Architecture::kQwen3;
  std::vector<LayerPart> parts{
      {"input_layernorm.weight", &LayerTensors::input_norm, hidden, nullptr},
      {"self_attn.q_proj.weight", &LayerTensors::qkv, queries, hidden},
      {"self_attn.k_proj.weight", &LayerTensors::qkv, keys, hidden},
      {"self_attn.v_proj.weight", &LayerTensors::qkv, keys, hidden},
  };
  const auto add = [&](const std::vector<LayerPart>& more) {
    parts.insert(parts.end(), more.begin(), more.end());
  };
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

Layout::Layout(const ModelConfig& config) : config_(config) {
  const auto& c = config_;
  const auto parts = layer_parts(c.architecture);
  const auto begin_section = [&] {
    const std::int64_t begin = (flat_size() + kAlign - 1) / kAlign * kAlign;
    if (!sections_.empty()) sections_.back().size = begin - sections_.back().begin;
    sections_.push_back({begin, 0});
  };
  begin_section();
  add("model.embed_tokens.weight", {c.vocab_size, c.hidden_size});
  for (std::int64_t i = 0; i < c.layers; ++i) {
    begin_section();
    at::Tensor LayerTensors::* last = nullptr;
    for (const LayerPart& part : parts) {
      std::vector<std::int64_t> shape{part.rows(c)};
      if (part.columns) shape.push_back(part.columns(c));
      add("model.layers." + std::to_string(i) + "." + part.name, std::move(shape), part.member != last);
      last = part.member;
    }
  }
  begin_section();
  add("model.norm.weight", {c.hidden_size});
  if (!c.tied_embeddings) add("lm_head.weight", {c.vocab_size, c.hidden_size});
  sections_.back().size = flat_size() - sections_.back().begin;
}

void FlatLayout::add(const std::string& name, std::vector<std::int64_t> shape, bool align) {
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

at::Tensor FlatLayout::view(const at::Tensor& flat, std::size_t first, std::size_t count,
                            std::int64_t begin) const {
  std::vector<std::int64_t> shape = entries_[first].shape;
  std::int64_t size = entries_[first].size;
  for (std::size_t i = 1; i < count; ++i) {
    shape[0] += entries_[first + i].shape[0];
    size += entries_[first + i].size;
  }
  return flat.narrow(0, entries_[first].offset - begin, size).view(shape);
}

ModelTensors Layout::map(const at::Tensor& flat) const {
  std::vector<at::Tensor> sections;
  sections.reserve(sections_.size());
  for (const Section& section : sections_) sections.push_back(flat.narrow(0, section.begin, section.size));
  return map(sections);
}

ModelTensors Layout::map(const std::vector<at::Tensor>& sections) const {
  std::size_t next = 0, section = 0;
  const auto take = [&](std::size_t count) {
    next += count;
    return view(sections[section], next - count, count, sections_[section].begin);
  };
  const auto parts = layer_parts(config_.architecture);
  ModelTensors out;
  out.embed = take(1);
  for (std::int64_t i = 0; i < config_.layers; ++i) {
    ++section;
    LayerTensors layer;
    for (auto part = parts.begin(); part != parts.end();) {
      const auto end = std::find_if(part, parts.end(),
                                    [&](const LayerPart& other) { return other.member != part->member; });
      layer.*part->member = take(static_cast<std::size_t>(end - part));
      part = end;
    }
    out.layers.push_back(std::move(layer));
  }
  ++section;
  out.norm = take(1);
  out.head = config_.tied_embeddings ? out.embed : take(1);
  return out;
}

std::vector<StoredTensor> FlatLayout::described(const std::string& prefix) const {
  std::vector<StoredTensor> out;
  for (const Entry& entry : entries_) {
    StoredTensor tensor;
    tensor.name = prefix + entry.name;
    tensor.dtype = "F32";
    tensor.shape = entry.shape;
    tensor.bytes = static_cast<std::size_t>(entry.size) * sizeof(float);
    out.push_back(std::move(tensor));
  }
  return out;
}

std::vector<StoredTensor> FlatLayout::stored(const at::Tensor& flat, const std::string& prefix) const {
  auto out = described(prefix);
  const auto* data = static_cast<const std::byte*>(flat.data_ptr());
  const std::size_t width = flat.element_size();
  for (std::size_t e = 0; e < entries_.size(); ++e) {
    out[e].dtype = ops::stored_name(ops::dtype_of(flat));
    out[e].data = data + static_cast<std::size_t>(entries_[e].offset) * width;
    out[e].bytes = static_cast<std::size_t>(entries_[e].size) * width;
  }
  return out;
}

}  // namespace rapo
