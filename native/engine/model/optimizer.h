// AdamW over flat buffers of parameters.
#pragma once

#include "model/layout.h"
#include "ops/aten.h"
#include "ops/ops.h"
#include "types.h"

namespace rapo {

/// Weight decay is decoupled and applies to matrices only. Masters and moments are float32, moments are
/// corrected for their bias. A float32 model's weights are their own masters; a bfloat16 model's are rounded
/// from the masters after each step.
class Optimizer {
 public:
  /// `master` (flat, float32) is shared, not copied; `weights` is the same tensor or the bfloat16 buffer.
  Optimizer(const ops::Backend& ops, const FlatLayout& layout, const AdamW& params, double max_grad_norm,
            at::Tensor master, at::Tensor weights);

  /// May scale grad (flat, float32) in place. If the norm is not finite, nothing changes.
  StepResult step(at::Tensor& grad, double learning_rate, const Control& control);

  const at::Tensor& master() const { return master_; }
  /// Steps made, without those that were skipped.
  std::int64_t steps() const { return steps_; }

  void save(const std::string& file, const Control& control) const;
  /// A file that does not fit changes nothing. control: counts the numbers read; cannot stop the reading.
  void load(const std::string& file, Control& control);

 private:
  void publish();

  const ops::Backend& ops_;
  const FlatLayout& layout_;
  std::vector<ops::FlatRange> ranges_;
  AdamW params_;
  double max_grad_norm_;
  std::int64_t steps_ = 0;
  at::Tensor master_, weights_, m_, v_;
};

}  // namespace rapo
