// The decoder of Qwen2 and its siblings (Qwen3, Llama): its parameters, the trunk (embedding to final norm)
// forward and backward over packed sequences, and one decoding step with a key/value cache. The head is in
// fused_head.h.
//
// The backward pass is written out rather than recorded by autograd. A layer is nine operations, ten where
// heads have norms. The code shows what it keeps, and weight gradients are added straight into their float32
// buffers.
// Symbols: R rows (tokens), C hidden size, H query heads, K key/value heads, D head width, I intermediate
// size, V vocabulary size.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "control.h"
#include "files/safetensors.h"
#include "model/config.h"
#include "ops/aten.h"
#include "ops/ops.h"

namespace rapo {

struct LayerTensors {
  at::Tensor input_norm;     // (C)
  at::Tensor qkv, qkv_bias;  // ((H + 2K) D, C), ((H + 2K) D); no bias in Qwen3 and Llama
  at::Tensor q_norm, k_norm; // (D) each, of every head before its rotation; Qwen3 alone has them
  at::Tensor o;              // (C, H D)
  at::Tensor post_norm;      // (C)
  at::Tensor gate_up;        // (2I, C)
  at::Tensor down;           // (C, I)
};

/// Views of a flat buffer with one number per parameter. The numbers are the weights or their gradients.
struct ModelTensors {
  at::Tensor embed;  // (V, C)
  std::vector<LayerTensors> layers;
  at::Tensor norm;  // (C)
  at::Tensor head;  // (V, C); the same view as embed when tied
};

/// The place of each tensor in a flat buffer.
class Layout {
 public:
  struct Entry {
    std::string name;  // as Hugging Face names it
    std::vector<std::int64_t> shape;
    std::int64_t offset = 0, size = 0;
    bool is_matrix() const {
      return shape.size() > 1;
    }  // weight decay applies to matrices, not to norms and biases
  };

  explicit Layout(const ModelConfig& config);

  const std::vector<Entry>& entries() const { return entries_; }
  std::int64_t flat_size() const { return flat_size_; }  // padding included
  std::int64_t parameters() const { return parameters_; }
  ModelTensors map(const at::Tensor& flat) const;
  /// Named views of a flat CPU buffer, for writing. `prefix` is put before each name.
  std::vector<StoredTensor> stored(const at::Tensor& flat, const std::string& prefix = "") const;

 private:
  void add(const std::string& name, std::vector<std::int64_t> shape, bool align = true);

  ModelConfig config_;
  std::vector<Entry> entries_;
  std::int64_t flat_size_ = 0, parameters_ = 0;
};

/// Tensors that a layer's backward pass needs, each with R rows.
struct LayerActivations {
  at::Tensor x, normed, rstd, qkv, attended, lse, middle, normed2, rstd2, gate_up, gated;
};

struct TrunkActivations {
  bool inputs_only = false;  // each layer keeps only x; backward() computes the rest again
  std::vector<LayerActivations> layers;
  at::Tensor x, rstd;  // input of the final norm
};

/// Keys (rotated) and values of every layer, (R, 2 K D) each.
using KeyValues = std::vector<at::Tensor>;

/// The layers' matrices and the head, prepared for products. Must be made again when the weights change.
struct ReadyWeights {
  struct Layer {
    ops::Linear qkv, o, gate_up, down;
  };
  std::vector<Layer> layers;
  ops::Linear head;

  ReadyWeights(const ops::Backend& ops, const ModelTensors& w);
};

/// Attention of layer `layer`: qkv (R, (H + 2K) D) -> (R, H D).
using Attend = std::function<at::Tensor(std::int64_t layer, const at::Tensor& qkv)>;

class Qwen2 {
 public:
  Qwen2(const ModelConfig& config, const ops::Backend& ops) : config_(config), layout_(config_), ops_(ops) {}

  const ops::Backend& ops() const { return ops_; }
  const ModelConfig& config() const { return config_; }
  const Layout& layout() const { return layout_; }
  ops::HeadShape head_shape() const { return {config_.heads, config_.kv_heads, config_.head_dim}; }

  /// -> (R, C) after the final norm. keep: receives the activations for backward(). key_values: receives the
  /// keys and values for a cache. Throws kAborted between layers.
  at::Tensor forward(const ModelTensors& w, const ReadyWeights& ready, const TrunkInput& input,
                     const Control& control, TrunkActivations* keep = nullptr,
                     KeyValues* key_values = nullptr);

  /// dhidden (R, C) -> gradients, which are added to grads. Frees the activations as it goes. Throws kAborted
  /// between layers.
  void backward(const ModelTensors& w, const ReadyWeights& ready, ModelTensors& grads,
                const TrunkInput& input, TrunkActivations& kept, const at::Tensor& dhidden,
                const Control& control);

  /// One decoding step: embeddings x (B, C) of one token per sequence -> (B, C) after the final norm. attend:
  /// attention over a cache, to which it adds the new keys and values.
  at::Tensor decode(const ModelTensors& w, const ReadyWeights& ready, at::Tensor x, const Attend& attend);
  /// The rotary embedding's tables for at least so many positions, in the dtype and on the device of `like`.
  /// They stay at their addresses until more positions are asked for.
  const ops::Rope& rope(std::int64_t positions, const at::Tensor& like);

 private:
  /// One layer: a.x (R, C) -> (R, C). keep: leaves in `a` what the backward pass needs. whole = false: leaves
  /// out the last product, which only the output needs.
  at::Tensor layer_forward(const LayerTensors& layer, const ReadyWeights::Layer& linear,
                           const std::function<at::Tensor(const at::Tensor& qkv)>& attend,
                           LayerActivations& a, bool keep, bool whole = true);

  /// qkv (R, (H + 2K) D) as attention takes it: with queries and keys normalised if the layer has norms for
  /// them. rstd: see ops::Backend::head_norm.
  at::Tensor normed_heads(const LayerTensors& layer, const at::Tensor& qkv, at::Tensor* rstd) const;

  ModelConfig config_;
  Layout layout_;
  const ops::Backend& ops_;
  ops::Rope rope_;
};

}  // namespace rapo
