// The head fused with the objective. logits = hidden weight^T is computed for one chunk of rows at a time, so
// that no (N, V) array exists for the policy or for the reference.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../objective.h"

namespace rapo::cuda {

/// Arrays on the device, row-major, with strides. N rows, V vocabulary, C and C' channels.
struct FusedHead {
  /// Only these members are read: rows, vocab_size, dtype (kFloat32 or kBFloat16; of hidden, weight and the
  /// logits computed from them) and the arrays with one entry per row, as in policy_loss.
  Batch batch;
  std::int64_t channels = 0, ref_channels = 0;  // C of the policy, C' of the reference
  const void* hidden = nullptr;                 // (N, C); masked rows are not read
  const void* weight = nullptr;                 // (V, C)
  const void* ref_hidden = nullptr;             // (N, C'); null without a penalty
  const void* ref_weight = nullptr;             // (V, C')
  std::int64_t hidden_stride = 0, weight_stride = 0, ref_hidden_stride = 0, ref_weight_stride = 0;
  /// (N, C) receives d loss / d hidden, of `dtype` or kFloat32; null: not wanted. May be hidden itself.
  void* grad_hidden = nullptr;
  DType grad_hidden_dtype = DType::kFloat32;
  std::int64_t grad_hidden_stride = 0;
  /// (V, C) d loss / d weight is added to it; null: not wanted.
  float* grad_weight = nullptr;
  std::int64_t grad_weight_stride = 0;
};

}  // namespace rapo::cuda
