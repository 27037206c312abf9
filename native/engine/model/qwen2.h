// The Qwen2 decoder: its parameters, the trunk (embedding to final norm) forward and backward over packed
// sequences, and one decoding step with a key/value cache. The head is in fused_head.h.
//
// The backward pass is written out rather than recorded by autograd: a layer is nine operations, the code
// shows what it keeps, and weight gradients are added straight into their float32 buffers. Symbols: R rows
// (tokens), C hidden size, H query heads, K key/value heads, D head width, I intermediate size, V vocabulary
// size.
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
  at::Tensor qkv, qkv_bias;  // ((H + 2K) D, C), ((H + 2K) D)
  at::Tensor o;              // (C, H D)
  at::Tensor post_norm;      // (C)
  at::Tensor gate_up;        // (2I, C)
  at::Tensor down;           // (C, I)
};

/// Views of one flat buffer that holds one number for each weight: the weights themselves, or their
/// gradients.
struct ModelTensors {
  at::Tensor embed;  // (V, C)
  std::vector<LayerTensors> layers;
  at::Tensor norm;  // (C)
  at::Tensor head;  // (V, C); the same view as embed when tied
};

/// Where each tensor lies in a flat buffer.
class Layout {
 public:
  struct Entry {
    std::string name;  // Hugging Face's
    std::vector<std::int64_t> shape;
    std::int64_t offset = 0, size = 0;
    bool is_matrix() const { return shape.size() > 1; }  // matrices decay; norms and biases do not
  };

  explicit Layout(const ModelConfig& config);

  const std::vector<Entry>& entries() const { return entries_; }
  std::int64_t flat_size() const { return flat_size_; }  // padding included
  std::int64_t parameters() const { return parameters_; }
  ModelTensors map(const at::Tensor& flat) const;
  /// Named views of a flat CPU buffer, for writing. prefix goes before each name.
  std::vector<StoredTensor> stored(const at::Tensor& flat, const std::string& prefix = "") const;

 private:
  void add(const std::string& name, std::vector<std::int64_t> shape, bool align = true);

  ModelConfig config_;
  std::vector<Entry> entries_;
  std::int64_t flat_size_ = 0, parameters_ = 0;
};

/// What a layer's backward pass needs; all (R, ·).
struct LayerActivations {
  at::Tensor x, normed, rstd, qkv, attended, lse, middle, normed2, rstd2, gate_up, gated;
};

struct TrunkActivations {
  bool inputs_only = false;  // of layers, x alone is kept; backward() computes the rest again
  std::vector<LayerActivations> layers;
  at::Tensor x, rstd;  // before the final norm
};

/// Rotated keys and values of every layer, (R, 2 K D) each.
using KeyValues = std::vector<at::Tensor>;

/// The layers' matrices and the head, ready for products. Stale once the weights change.
struct ReadyWeights {
  struct Layer {
    ops::Linear qkv, o, gate_up, down;
  };
  std::vector<Layer> layers;
  ops::Linear head;

  ReadyWeights(const ops::Backend& ops, const ModelTensors& w);
};

/// Attention of layer number `layer` for qkv (R, (H + 2K) D) -> (R, H D).
using Attend = std::function<at::Tensor(std::int64_t layer, const at::Tensor& qkv)>;

class Qwen2 {
 public:
  Qwen2(ModelConfig config, const ops::Backend& ops)
      : config_(std::move(config)), layout_(config_), ops_(ops) {}

  const ops::Backend& ops() const { return ops_; }
  const ModelConfig& config() const { return config_; }
  const Layout& layout() const { return layout_; }
  ops::HeadShape head_shape() const { return {config_.heads, config_.kv_heads, config_.head_dim}; }

  /// -> (R, C) after the final norm. keep: activations for backward(); key_values: for a cache. Throws
  /// kAborted between layers.
  at::Tensor forward(const ModelTensors& w, const ReadyWeights& ready, const TrunkInput& input,
                     const Control& control, TrunkActivations* keep = nullptr,
                     KeyValues* key_values = nullptr);

  /// dhidden (R, C) -> gradients added to grads; activations are freed on the way. Throws kAborted between
  /// layers.
  void backward(const ModelTensors& w, const ReadyWeights& ready, ModelTensors& grads,
                const TrunkInput& input, TrunkActivations& kept, const at::Tensor& dhidden,
                const Control& control);

  /// Embedded tokens x (B, C), one of each sequence -> (B, C) after the final norm. attend: from and to a
  /// cache.
  at::Tensor decode(const ModelTensors& w, const ReadyWeights& ready, at::Tensor x, const Attend& attend);
  /// The rotary embedding's tables of at least so many positions, for weights like `like`. They stay where
  /// they are until more positions are asked for.
  const ops::Rope& rope(std::int64_t positions, const at::Tensor& like);

 private:
  /// One layer: a.x (R, C) -> (R, C). keep: a holds what its backward pass needs. Without `whole` the last
  /// product, which only the output needs, is left out.
  at::Tensor layer_forward(const LayerTensors& layer, const ReadyWeights::Layer& linear,
                           const std::function<at::Tensor(const at::Tensor& qkv)>& attend,
                           LayerActivations& a, bool keep, bool whole = true);

  ModelConfig config_;
  Layout layout_;
  const ops::Backend& ops_;
  ops::Rope rope_;
};

}  // namespace rapo
