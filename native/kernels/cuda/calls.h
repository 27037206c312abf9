// rapo::policy_loss and rapo::gather_logprobs on a CUDA device. Each function returns when its results are
// there. In addition to the errors of those functions they throw kDevice (CUDA is missing or failed) and
// kOutOfMemory (the device's memory is used up).
#pragma once

#include "../loss.h"
#include "fused_head.h"

namespace rapo::cuda {

/// For arrays in host memory. They are copied to the device and back, in parts of as many rows as fit into
/// its memory; gspo needs all rows at once.
Metrics policy_loss_of_host_arrays(int device, const Batch& batch, const Objective& objective,
                                   const Outputs& outputs, const Control* control = nullptr);
void gather_logprobs_of_host_arrays(int device, const LogitRows& logits, const std::int32_t* token_ids,
                                    double temperature, const GatherOutputs& outputs,
                                    const Control* control = nullptr);

/// For arrays on the device, used on `stream` (a cudaStream_t; null: the default stream). After
/// kInvalidArgument nothing has been written. After kNonFinite the rows without a fault have their gradient,
/// and a row with a fault still holds its logits if the gradient is written in place.
Metrics policy_loss_of_device_arrays(int device, void* stream, const Batch& batch, const Objective& objective,
                                     const Outputs& outputs);
void gather_logprobs_of_device_arrays(int device, void* stream, const LogitRows& logits,
                                      const std::int32_t* token_ids, double temperature,
                                      const GatherOutputs& outputs);

/// Device memory for fused_head_loss_of_device_arrays, aligned to 256 bytes.
struct HeadWorkspace {
  void* data = nullptr;
  std::size_t bytes = 0;
};
/// Bytes of the workspace that chunks of so many rows need.
std::size_t fused_head_workspace_bytes(int device, const FusedHead& head, std::int64_t chunk_rows);

/// The loss of the head's rows on `stream`, chunk_rows rows at a time. chunk_rows 0 takes as many as the
/// workspace or half of the free memory holds. Writes grad_hidden and adds to grad_weight. If no workspace is
/// given, one is allocated for the call. The same chunk_rows give the same bits. After kInvalidArgument, and
/// after kDevice because cuBLASLt is missing, nothing has been written. After kNonFinite the gradients hold
/// unspecified values.
Metrics fused_head_loss_of_device_arrays(int device, void* stream, const FusedHead& head,
                                         const Objective& objective, const Outputs& outputs,
                                         std::int64_t chunk_rows, const HeadWorkspace& given);

}  // namespace rapo::cuda
