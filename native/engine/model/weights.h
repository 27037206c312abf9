// A model's weights: read from a checkpoint into one flat buffer on the model's device.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "control.h"
#include "files/safetensors.h"
#include "model/qwen2.h"
#include "model/shards.h"
#include "ops/aten.h"
#include "types.h"

namespace rapo {

/// As messages show a shape: [2, 3].
std::string show_shape(const std::vector<std::int64_t>& shape);

/// Copies a stored tensor's numbers, converted, into `to`, which is flat and has as many. file: for the error
/// kUnsupported, which names a type that weights cannot have.
void copy_stored(const StoredTensor& from, const std::string& file, at::Tensor& to);

/// Opens a directory's weights and checks that it holds exactly this model's tensors, each of the right
/// shape, before memory is taken for them. Appended to ignored, as "FILE: NAME": rotary frequencies and value
/// heads, which nothing here uses.
Checkpoint open_weights(const ModelSource& model, const Layout& layout, std::vector<std::string>& ignored);

/// Copies the stored numbers into a flat buffer, converted to its dtype. control: counts the parameters read;
/// looked at every few million of them.
void read_weights(const Checkpoint& checkpoint, const Layout& layout, at::Tensor& flat, Control& control);

/// The same for the slices of a rank, into its shard.
void read_shard(const Checkpoint& checkpoint, const Layout& layout, const Shards& shards, at::Tensor& shard,
                const Control& control);

/// Random float32 weights: matrices are normal with the configuration's initializer_range, norms are 1,
/// biases 0.
at::Tensor random_weights(const ModelConfig& config, const Layout& layout, std::uint64_t seed,
                          const Control& control);

/// A model with its weights.
class Model {
 public:
  Model(const ModelSource& source, DType dtype, at::Device device, const ops::Backend& ops, Control& control);

  Qwen2 net;
  std::vector<std::string>
      ignored;            // from open_weights(); declared before checkpoint, whose initialiser fills it
  Checkpoint checkpoint;  // the caller closes it once the masters have been read
  at::Tensor flat;        // (flat_size), of the policy's dtype
  ModelTensors weights;   // views of flat

  std::unique_ptr<Adapter> adapter;  // null if the model has none

  std::int64_t element_size() const { return static_cast<std::int64_t>(flat.element_size()); }

  /// The current weights and the adapter, prepared for products.
  const ReadyWeights& ready();
  /// The same without the adapter.
  const ReadyWeights& base();
  /// What generation takes: the adapter merged into the weights if merges is true, else ready(). Merging is
  /// done by the first call after a change.
  const ReadyWeights& for_generation();
  /// Frees the merged weights. The next ones are the same bits unless the adapter changes.
  void drop_merged() { merged_.reset(); }
  /// Must be called after every change of the weights, or of the adapter where there is one: frees what was
  /// prepared of them. steps: optimizer steps so far, on which the rounding of merged weights depends.
  void changed(std::int64_t steps = 0);

  bool merges = false;
  std::uint64_t seed = 0;  // of the rounding of merged weights

  /// weights = share * other + (1 - share) * weights, share in (0, 1], in float32 and rounded once. other: of
  /// a flat buffer of the same layout, from `begin` on. Call changed() after the last part.
  void mix_in(std::int64_t begin, const at::Tensor& other, double share);

 private:
  std::unique_ptr<ReadyWeights> base_, adapted_, merged_;
  std::int64_t steps_ = 0;
};

}  // namespace rapo
