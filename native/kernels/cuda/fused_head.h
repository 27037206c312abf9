// The head fused with the objective: logits = hidden weight^T, a chunk of rows at a time, so that no (N, V)
// array exists for the policy or for the reference.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../objective.h"

namespace rapo::cuda {

/// Arrays on the device, row-major; rows may lie apart. N rows, V vocabulary, C and C' channels.
struct FusedHead {
  /// rows, vocab_size, dtype (kFloat32 or kBFloat16, of hidden, weight and the logits made from them) and the
  /// arrays with one entry a row, as in policy_loss. The logits are not looked at.
  Batch batch;
  std::int64_t channels = 0, ref_channels = 0;  // C of the policy, C' of the reference
  const void* hidden = nullptr;                 // (N, C); rows that are masked are not looked at
  const void* weight = nullptr;                 // (V, C)
  const void* ref_hidden = nullptr;             // (N, C'); null without a penalty
  const void* ref_weight = nullptr;             // (V, C')
  std::int64_t hidden_stride = 0, weight_stride = 0, ref_hidden_stride = 0, ref_weight_stride = 0;
  /// (N, C) d loss / d hidden, written, of `dtype` or kFloat32; null: not wanted. May be hidden itself.
  void* grad_hidden = nullptr;
  DType grad_hidden_dtype = DType::kFloat32;
  std::int64_t grad_hidden_stride = 0;
  /// (V, C) d loss / d weight, added to what is there; null: not wanted.
  float* grad_weight = nullptr;
  std::int64_t grad_weight_stride = 0;
};

}  // namespace rapo::cuda
