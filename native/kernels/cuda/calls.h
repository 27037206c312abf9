// rapo::policy_loss and rapo::gather_logprobs on a CUDA device. Each returns when its results are there.
// Besides what those throw: kDevice where there is no CUDA or it failed, kOutOfMemory where the device's ran
// out.
#pragma once

#include "../loss.h"
#include "fused_head.h"

namespace rapo::cuda {

/// Arrays in host memory: copied to the device in parts of rows that fit its memory (gspo: all at once), and
/// back.
Metrics policy_loss_of_host_arrays(int device, const Batch& batch, const Objective& objective,
                                   const Outputs& outputs, const Control* control = nullptr);
void gather_logprobs_of_host_arrays(int device, const LogitRows& logits, const std::int32_t* token_ids,
                                    double temperature, const GatherOutputs& outputs,
                                    const Control* control = nullptr);

/// Arrays on the device, used on the stream (a cudaStream_t; null: the default one). After kInvalidArgument
/// nothing has been written; after kNonFinite the rows without a fault have, and those with one still hold
/// their logits.
Metrics policy_loss_of_device_arrays(int device, void* stream, const Batch& batch, const Objective& objective,
                                     const Outputs& outputs);
void gather_logprobs_of_device_arrays(int device, void* stream, const LogitRows& logits,
                                      const std::int32_t* token_ids, double temperature,
                                      const GatherOutputs& outputs);

/// Memory of the device for fused_head_loss_of_device_arrays, aligned to 256.
struct HeadWorkspace {
  void* data = nullptr;
  std::size_t bytes = 0;
};
/// Bytes of a workspace for chunks of so many rows.
std::size_t fused_head_workspace_bytes(int device, const FusedHead& head, std::int64_t chunk_rows);

/// The loss of the head's rows on the stream, chunk_rows of them at a time (0: what the workspace holds, or
/// half of the free memory); grad_hidden is written and grad_weight added to. Without a workspace one is
/// allocated for the call. The same chunk_rows give the same bits. After kInvalidArgument, and kDevice where
/// cuBLASLt is missing, nothing has been written; after kNonFinite the gradients hold unspecified values.
Metrics fused_head_loss_of_device_arrays(int device, void* stream, const FusedHead& head,
                                         const Objective& objective, const Outputs& outputs,
                                         std::int64_t chunk_rows, const HeadWorkspace& given);

}  // namespace rapo::cuda
