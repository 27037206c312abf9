// AdamW over flat buffers of parameters.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "comm/world.h"
#include "model/layout.h"
#include "model/shards.h"
#include "ops/aten.h"
#include "ops/ops.h"
#include "types.h"

namespace rapo {

/// Weight decay is decoupled and applies to matrices only. Masters are float32, moments are corrected for
/// their bias. bfloat16 moments are rounded stochastically after each step, since the nearest bfloat16 number
/// would lose a change of less than 0.2 %, such as square's with beta2 = 0.999. A float32 model's weights are
/// their own masters; a bfloat16 model's are rounded from the masters after each step. With shards, a rank
/// holds and updates the masters and moments of its shard alone, and all ranks exchange the weights after a
/// step (ZeRO-1, arXiv 1910.02054).
class Optimizer {
 public:
  /// Of options: adamw, max_grad_norm, state_dtype and seed. master: float32, shared, not copied; the weights
  /// themselves if they are float32, else a buffer like them, or of the shard's size. shards and world: both
  /// or none, and none with bfloat16 moments.
  Optimizer(const ops::Backend& ops, const FlatLayout& layout, const PolicyOptions& options,
            at::Tensor master, at::Tensor weights, const Shards* shards = nullptr, World* world = nullptr);

  /// grad: float32, of all weights or (is_shard) of the shard; it may be scaled in place. norm: of the whole
  /// gradient. If the norm is not finite, nothing changes.
  StepResult step(at::Tensor& grad, bool is_shard, double norm, double learning_rate, const Control& control);

  /// Whether every master is here.
  bool has_all_masters() const { return !shards_ || masters_are_weights(); }
  /// Needs all masters.
  const at::Tensor& master() const { return master_; }
  /// Calls f(begin, masters from there on) until it has had all; a call of all ranks.
  void each_master(const std::function<void(std::int64_t begin, const at::Tensor& masters)>& f,
                   const Control& control) const;
  /// Steps made, without those that were skipped.
  std::int64_t steps() const { return steps_; }

  /// Writes masters, moments and the number of steps. With shards every rank writes its part into the same
  /// file, which is whole when all have returned.
  void save(const std::string& file, const Control& control) const;
  /// Reads what is needed here of a file that any number of ranks wrote. A file that does not fit changes
  /// nothing. control: counts the numbers read; cannot stop the reading.
  void load(const std::string& file, Control& control);

 private:
  /// A part of the weights that is updated here: flat in the weights, shard in the moments.
  struct Slice {
    std::int64_t flat, shard, size;
    std::vector<ops::FlatRange> ranges;  // of the tensors, from the slice's begin
  };
  /// What a slice has of a tensor.
  struct Overlap {
    std::size_t entry;
    std::int64_t in_entry, flat, shard, size;
  };

  /// What a state file has of every tensor: under this prefix, these numbers, of all weights or of the shard.
  struct Kind {
    const char* prefix;
    at::Tensor flat;
    bool is_shard;
  };
  std::vector<Kind> kinds() const;

  bool masters_are_weights() const { return weights_.scalar_type() == at::kFloat; }
  at::Tensor master_of(std::int64_t flat, std::int64_t shard, std::int64_t size) const;
  void publish(const Control& control);
  /// Exchanges the ranks' slices of one piece after the other: own(piece, to) fills the own slice, use(piece,
  /// all) gets the piece.
  void exchange(const std::string& what, at::ScalarType type,
                const std::function<void(const Shards::Piece&, at::Tensor& to)>& own,
                const std::function<void(const Shards::Piece&, const at::Tensor& all)>& use,
                const Control& control) const;
  std::string step_name(const char* what) const;

  const ops::Backend& ops_;
  const FlatLayout& layout_;
  const Shards* shards_;
  World* world_;
  std::vector<Slice> slices_;
  std::vector<Overlap> overlaps_;
  AdamW params_;
  double max_grad_norm_;
  std::uint64_t seed_;
  std::int64_t steps_ = 0;
  at::Tensor master_, weights_, m_, v_;
};

}  // namespace rapo
