// Stands for loss.cu where a test breaks what gather.cu uses too and need not wait for the larger one.
#include "kernels/cuda/launch.h"

namespace rapo::cuda {

std::size_t loss_workspace(std::int64_t) { return 0; }

LossCall loss_call(const Batch& batch, const Objective& objective, const Outputs& outputs, void*,
                   Report* report) {
  return {batch, objective, outputs, nullptr, nullptr, report, 0};
}

cudaError_t enqueue_checks(const LossCall&, cudaStream_t) { return cudaErrorInvalidValue; }

cudaError_t policy_loss(int, const Batch&, const Objective&, const Outputs&, void*, Report*, cudaStream_t) {
  return cudaErrorInvalidValue;
}

std::size_t fused_head_workspace(const FusedHead&, std::int64_t) { return 0; }

int fused_head_loss(int, const FusedHead&, const Objective&, const Outputs&, std::int64_t, void*, Report*,
                    cudaStream_t) {
  return cudaErrorInvalidValue;
}

}  // namespace rapo::cuda
