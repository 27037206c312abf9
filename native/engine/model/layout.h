// The parameters of a model: which there are, and the place of each in a flat buffer.
// Symbols: C hidden size, H query heads, K key/value heads, D head width, I intermediate size, V vocabulary
// size.
#pragma once

#include <string>
#include <vector>

#include "files/safetensors.h"
#include "model/config.h"
#include "ops/aten.h"

namespace rapo {

struct LayerTensors {
  at::Tensor input_norm;      // (C)
  at::Tensor qkv, qkv_bias;   // ((H + 2K) D, C), ((H + 2K) D); no bias in Qwen3 and Llama
  at::Tensor q_norm, k_norm;  // (D) each, of every head before its rotation; Qwen3 alone has them
  at::Tensor o;               // (C, H D)
  at::Tensor post_norm;       // (C)
  at::Tensor gate_up;         // (2I, C)
  at::Tensor down;            // (C, I)
};

/// Views of a flat buffer with one number per parameter. The numbers are the weights or their gradients.
struct ModelTensors {
  at::Tensor embed;  // (V, C)
  std::vector<LayerTensors> layers;
  at::Tensor norm;  // (C)
  at::Tensor head;  // (V, C); the same view as embed when tied
};

/// The places of named tensors in a flat buffer.
class FlatLayout {
 public:
  struct Entry {
    std::string name;
    std::vector<std::int64_t> shape;
    std::int64_t offset = 0, size = 0;
    bool is_matrix() const {
      return shape.size() > 1;
    }  // weight decay applies to matrices, not to norms and biases
  };

  const std::vector<Entry>& entries() const { return entries_; }
  std::int64_t flat_size() const { return flat_size_; }  // padding included
  std::int64_t parameters() const { return parameters_; }
  /// Named views of a flat CPU buffer, for writing. `prefix` is put before each name.
  std::vector<StoredTensor> stored(const at::Tensor& flat, const std::string& prefix = "") const;
  /// The same float32 tensors without numbers.
  std::vector<StoredTensor> described(const std::string& prefix) const;

 protected:
  /// align: the tensor begins at a multiple of 64 bytes; false: right behind the one before.
  void add(const std::string& name, std::vector<std::int64_t> shape, bool align = true);
  /// One tensor that covers `count` entries from `first` on, whose shapes differ in their rows at most. flat
  /// holds the numbers from `begin` of the layout on.
  at::Tensor view(const at::Tensor& flat, std::size_t first, std::size_t count = 1,
                  std::int64_t begin = 0) const;

 private:
  std::vector<Entry> entries_;
  std::int64_t flat_size_ = 0, parameters_ = 0;
};

/// One tensor of a layer. Neighbours with the same `member` lie end to end and form one matrix, so that q, k
/// and v (or gate and up) are one product.
struct LayerPart {
  const char* name;  // what follows "model.layers.N."
  at::Tensor LayerTensors::* member;
  std::int64_t (*rows)(const ModelConfig&);
  std::int64_t (*columns)(const ModelConfig&);  // null if the tensor is a vector
};

/// The tensors of a layer in a family of models. Members of LayerTensors that a family does not have stay
/// undefined, and the network leaves them out.
std::vector<LayerPart> layer_parts(Architecture architecture);

/// A model's tensors, named as Hugging Face names them.
class Layout : public FlatLayout {
 public:
  /// A range whose gradients are complete at the same moment of a backward pass.
  struct Section {
    std::int64_t begin = 0, size = 0;
  };

  explicit Layout(const ModelConfig& config);
  ModelTensors map(const at::Tensor& flat) const;
  /// The same for a buffer of each section.
  ModelTensors map(const std::vector<at::Tensor>& sections) const;

  /// Embeddings; every layer; the final norm, with the head where the head is not the embeddings. Together
  /// they cover the buffer.
  const std::vector<Section>& sections() const { return sections_; }
  /// Whether the head is the embeddings.
  bool is_tied() const { return config_.tied_embeddings; }

 private:
  ModelConfig config_;
  std::vector<Section> sections_;
};

}  // namespace rapo
