// Host code of the CUDA library that starts kernels.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../row_fault.h"
#include "../token.h"
#include "library.h"
#include "row.h"

#define RAPO_TRY(call)                                \
  do {                                                \
    const cudaError_t rapo_error = (call);            \
    if (rapo_error != cudaSuccess) return rapo_error; \
  } while (false)

/// The same for functions that return the errors of gemm.h, too.
#define RAPO_TRY_ANY(call)                  \
  do {                                      \
    const int rapo_error = (call);          \
    if (rapo_error != 0) return rapo_error; \
  } while (false)

namespace rapo::cuda {

/// The launch of one kernel on a stream. `cluster` blocks share their shared memory; it is 1 before sm_90.
struct Launch {
  int blocks, threads, shared_bytes, cluster;
  cudaStream_t stream;
};

/// `attribute` must live as long as the returned configuration.
inline cudaLaunchConfig_t configuration(const Launch& shape, cudaLaunchAttribute& attribute) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(shape.blocks));
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = static_cast<std::size_t>(shape.shared_bytes);
  config.stream = shape.stream;
  attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(shape.cluster);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  config.attrs = &attribute;
  config.numAttrs = shape.cluster > 1 ? 1 : 0;
  return config;
}

template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const Launch& shape, Arguments&&... arguments) {
  cudaLaunchAttribute attribute;
  const auto config = configuration(shape, attribute);
  return cudaLaunchKernelEx(&config, kernel, static_cast<Arguments&&>(arguments)...);
}

/// The number of such clusters that the device can run at once.
template <class... Parameters>
cudaError_t resident_clusters(void (*kernel)(Parameters...), const Launch& shape, int multiprocessors,
                              int& clusters) {
  if (shape.cluster > 1) {
    cudaLaunchAttribute attribute;
    const auto config = configuration(shape, attribute);
    return cudaOccupancyMaxActiveClusters(&clusters, kernel, &config);
  }
  RAPO_TRY(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&clusters, kernel, shape.threads,
                                                         static_cast<std::size_t>(shape.shared_bytes)));
  clusters *= multiprocessors;
  return cudaSuccess;
}

constexpr int kEntryThreads = 128;

inline Launch one_thread_each(std::int64_t items, cudaStream_t stream) {
  return {static_cast<int>((items + kEntryThreads - 1) / kEntryThreads), kEntryThreads, 0, 1, stream};
}

/// Threads of a block that processes one row at a time: enough for whole rounds of kInFlight vectors, at most
/// kRowThreads.
inline int row_threads(std::int64_t vocab_size, DType dtype) {
  const std::int64_t vectors = vocab_size * static_cast<std::int64_t>(dtype_size(dtype)) / 16;
  const std::int64_t wanted = (vectors + kInFlight - 1) / kInFlight;
  return static_cast<int>(std::clamp<std::int64_t>((wanted + kWarp - 1) / kWarp * kWarp, kWarp, kRowThreads));
}

template <class F>
cudaError_t for_dtype(DType dtype, F&& body) {
  switch (dtype) {
    case DType::kFloat32:
      return body(float{});
    case DType::kBFloat16:
      return body(BF16{});
    case DType::kFloat16:
      return body(F16{});
    case DType::kFloat64:
      break;
  }
  return cudaErrorInvalidValue;
}

cudaError_t use_device(int device);
/// The result is cached. The device must have been used before.
cudaError_t device_info(int device, DeviceInfo& info);

/// Number of blocks for a kernel whose blocks process rows one after another. It is the number that the
/// device can run at once, but not more than have their rows in half of the second-level cache, since each
/// row (row_bytes) is read twice.
template <class... Parameters>
cudaError_t row_blocks(void (*kernel)(Parameters...), int device, std::int64_t rows, std::int64_t row_bytes,
                       Launch& shape) {
  DeviceInfo info;
  RAPO_TRY(device_info(device, info));
  int resident = 0;
  RAPO_TRY(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, shape.threads,
                                                         static_cast<std::size_t>(shape.shared_bytes)));
  const std::int64_t cached = info.l2 / 2 / std::max<std::int64_t>(1, row_bytes * info.multiprocessors);
  const std::int64_t each = std::clamp<std::int64_t>(cached, 1, std::max(1, resident));
  shape.blocks = static_cast<int>(std::min<std::int64_t>(rows, each * info.multiprocessors));
  return cudaSuccess;
}

/// The arguments of every kernel of a loss.
struct LossCall {
  Batch batch;
  Objective objective;
  Outputs outputs;
  Token* tokens;   // (N)
  double* ratios;  // (N) for gspo: first log-probs, then the log-ratios made from them
  Report* report;
  std::int64_t first_row;  // added to a row's index in reports, if the logits are those of a part of the rows
};

// policy_loss, and its parts in the order of their use. If the logits come in several parts, enqueue_logprobs
// and enqueue_rows are called once for each part, with arrays that begin at the part's first row.
LossCall loss_call(const Batch& batch, const Objective& objective, const Outputs& outputs, void* workspace,
                   Report* report);
/// Clears the report and checks the entries of all rows.
cudaError_t enqueue_checks(const LossCall& call, cudaStream_t stream);
/// For gspo with old log-probs: computes the log-prob of each row.
cudaError_t enqueue_logprobs(int device, const LossCall& call, cudaStream_t stream);
/// For gspo: computes the log-ratios of all rows and puts them into the call.
cudaError_t enqueue_sequence_ratios(LossCall& call, cudaStream_t stream);
/// Computes losses and gradients.
cudaError_t enqueue_rows(int device, const LossCall& call, cudaStream_t stream);
/// Adds up the metrics of all rows.
cudaError_t enqueue_metrics(const LossCall& call, cudaStream_t stream);
cudaError_t policy_loss(int device, const Batch& batch, const Objective& objective, const Outputs& outputs,
                        void* workspace, Report* report, cudaStream_t stream);
std::size_t loss_workspace(std::int64_t rows);
int fused_head_loss(int device, const FusedHead& head, const Objective& objective, const Outputs& outputs,
                    std::int64_t chunk_rows, void* workspace, Report* report, cudaStream_t stream);
std::size_t fused_head_workspace(const FusedHead& head, std::int64_t chunk_rows);
cudaError_t gather_logprobs(int device, const LogitRows& logits, const std::int32_t* token_ids,
                            double temperature, const GatherOutputs& outputs, Report* report,
                            cudaStream_t stream);

template <class T>
RAPO_DEVICE const T* typed_row(const void* data, std::int64_t stride, std::int64_t row) {
  return static_cast<const T*>(data) + row * stride;
}

/// Records a fault of a row. The fault of the row with the smallest index is kept.
RAPO_DEVICE void note_fault(std::uint64_t* word, std::int64_t row, int fault) {
  atomicMin(reinterpret_cast<unsigned long long*>(word),
            static_cast<unsigned long long>(row) << 8 | static_cast<unsigned long long>(fault));
}

}  // namespace rapo::cuda
