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

/// The loss of the head's rows on the stream, chunk_rows (0: chosen from the free memory) of them at a time;
/// grad_hidden is written and grad_weight added to. The same chunk_rows give the same bits. After
/// kInvalidArgument, and kDevice where cuBLASLt is missing, nothing has been written; after kNonFinite the
/// gradients hold unspecified values.
Metrics fused_head_loss_of_device_arrays(int device, void* stream, const FusedHead& head,
                                         const Objective& objective, const Outputs& outputs,
                                         std::int64_t chunk_rows);

}  // namespace rapo::cuda
