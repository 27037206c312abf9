// AdamW over a model's flat buffers.
#pragma once

#include "model/qwen2.h"
#include "ops/aten.h"
#include "types.h"

namespace rapo {

/// Decoupled weight decay on matrices only; float32 masters and moments; bias-corrected. The float32 model's
/// weights are their own masters, a bfloat16 model's are rounded from them after each step.
class Optimizer {
 public:
  /// `master` (flat, float32) is shared, not copied; `weights` is the same tensor or the bfloat16 buffer.
  Optimizer(const Layout& layout, const AdamW& params, double max_grad_norm, at::Tensor master,
            at::Tensor weights);

  /// grad (flat, float32) may be scaled. A norm that is not finite changes nothing.
  StepResult step(at::Tensor& grad, double learning_rate);

  const at::Tensor& master() const { return master_; }

  void save(const std::string& file) const;
  /// All or nothing: a file that does not fit changes nothing.
  void load(const std::string& file);

 private:
  void step_fused(at::Tensor& grad, double grad_scale, double learning_rate);
  void publish();

  const Layout& layout_;
  AdamW params_;
  double max_grad_norm_;
  std::int64_t steps_ = 0;
  at::Tensor master_, weights_, m_, v_;
};

/// The Euclidean norm, summed in double in a fixed order.
double norm_of(const at::Tensor& flat);

}  // namespace rapo
