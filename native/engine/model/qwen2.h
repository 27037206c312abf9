// The decoder of Qwen2 and its siblings (Qwen3, Llama): the trunk (embedding to final norm) forward and
// backward over packed sequences, and one decoding step with a key/value cache. The head is in fused_head.h.
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
#include "model/adapter.h"
#include "model/config.h"
#include "model/layout.h"
#include "ops/aten.h"
#include "ops/ops.h"

namespace rapo {

/// Tensors that a layer's backward pass needs, each with R rows.
struct LayerActivations {
  at::Tensor x, normed, rstd, qkv, attended, lse, middle, normed2, rstd2, gate_up, gated;
  at::Tensor low_qkv, low_o, low_gate_up, low_down;  // of an adapter: s x A^T
};

struct TrunkActivations {
  bool inputs_only = false;  // each layer keeps only x; backward() computes the rest again
  std::vector<LayerActivations> layers;
  at::Tensor x, rstd;  // input of the final norm
};

/// Keys (rotated) and values of every layer, (R, 2 K D) each.
using KeyValues = std::vector<at::Tensor>;

/// A matrix prepared for products, with the adapter's term where it has one.
struct Projection {
  ops::Linear weight;
  ReadyLowRank low;
};

/// The layers' matrices and the head, prepared for products. Must be made again when the weights change.
struct ReadyWeights {
  struct Layer {
    Projection qkv, o, gate_up, down;
  };
  std::vector<Layer> layers;
  ops::Linear head;

  ReadyWeights(const ops::Backend& ops, const ModelTensors& w);
  /// Adds an adapter.
  void add(const ops::Backend& ops, const AdapterTensors& adapter, double scaling);
  /// Replaces the matrices that an adapter changes by their sums with it. w: the model's weights. key: of the
  /// sums' rounding.
  void merge(const ops::Backend& ops, const ModelTensors& w, const Adapter& adapter, std::uint64_t key);
};

/// Where backward() adds gradients, float32. Tensors that are not trained are undefined.
struct Gradients {
  ModelTensors weights;
  AdapterTensors adapter;  // empty without an adapter
  /// Told of each section of the layout before its first gradient of a backward pass is added, and after its
  /// last one.
  std::function<void(std::int64_t section)> on_begin, on_end;

  void begin(std::int64_t section) {
    if (on_begin) on_begin(section);
  }
  void end(std::int64_t section) {
    if (on_end) on_end(section);
  }
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

  /// dhidden (R, C) -> gradients, which are added to those tensors of grads that are defined. The last
  /// section has begun already. Frees the activations as it goes. Throws kAborted between layers.
  void backward(const ModelTensors& w, const ReadyWeights& ready, Gradients& grads, const TrunkInput& input,
                TrunkActivations& kept, const at::Tensor& dhidden, const Control& control);

  /// One decoding step: embeddings x (B, C) of one token per sequence -> (B, C) after the final norm. attend:
  /// attention over a cache, to which it adds the new keys and values.
  at::Tensor decode(const ModelTensors& w, const ReadyWeights& ready, at::Tensor x, const Attend& attend);
  /// The rotary embedding's tables for at least so many positions, in the dtype and on the device of `like`.
  /// They stay at their addresses until more positions are asked for.
  const ops::Rope& rope(std::int64_t positions, const at::Tensor& like);

 private:
  /// One layer: a.x (R, C) -> (R, C). keep: leaves in `a` what the backward pass needs. whole = false: leaves
  /// out the last product, which only the output needs.
  at::Tensor layer_forward(const LayerTensors& layer, const ReadyWeights::Layer& ready,
                           const std::function<at::Tensor(const at::Tensor& qkv)>& attend,
                           LayerActivations& a, bool keep, bool whole = true);

  /// qkv (R, (H + 2K) D) as attention takes it: with queries and keys normalised if the layer has norms for
  /// them. rstd: see ops::Backend::head_norm.
  at::Tensor normed_heads(const LayerTensors& layer, const at::Tensor& qkv, at::Tensor* rstd) const;

  /// x (R, K) -> (R, N): the product with the matrix and its adapter, plus a bias or residual `start` if
  /// defined. low: receives what project_backward() needs; may be null.
  at::Tensor project(const at::Tensor& x, const Projection& matrix, const at::Tensor& start,
                     at::Tensor* low) const;
  /// dy (R, N) -> dx (R, K). Adds to the gradients of the matrix (if defined) and of its adapter.
  at::Tensor project_backward(const at::Tensor& dy, const at::Tensor& x, const Projection& matrix,
                              const at::Tensor& low, at::Tensor& grad, LowRank& low_grad) const;

  ModelConfig config_;
  Layout layout_;
  const ops::Backend& ops_;
  ops::Rope rope_;
};

}  // namespace rapo
