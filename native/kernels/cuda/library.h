// The face of the CUDA library: one table of functions, which open.cpp finds in the shared library. Pointers
// are the device's unless it says "host"; a stream is a cudaStream_t, null the default one. An int result is
// a cudaError_t.
#pragma once

#include <cstddef>
#include <cstdint>

#include "fused_head.h"
#include "kernels/loss.h"
#include "kernels/objective.h"

namespace rapo::cuda {

/// Raised whenever anything here changes; a longer batch or longer outputs (row_arrays.h) show by themselves.
constexpr int kAbiVersion = (5 << 16) + static_cast<int>(sizeof(Batch) + sizeof(Objective) + sizeof(Outputs));

struct DeviceInfo {
  char name[256] = {};
  int major = 0, minor = 0;  // compute capability
  int multiprocessors = 0;
  std::int64_t memory = 0, l2 = 0, shared_per_block = 0;  // bytes
};

/// What went wrong in a call, as (row << 8 | fault) of the first such row; kNoFault where nothing did.
struct Status {
  std::uint64_t invalid, non_finite;
};
constexpr std::uint64_t kNoFault = ~std::uint64_t{0};
/// In Status::invalid: nothing was invalid, but bad logits stopped the call before its loss.
constexpr std::uint64_t kStopped = kNoFault - 1;

/// Faults beside those of RowFault in Status::invalid: rows of one sequence that differ, and offsets that do
/// not cover the rows.
constexpr int kFaultSequence = 64, kFaultOffsets = 65;

/// The faults in Status::non_finite.
enum class DataFault : std::uint8_t { kNone, kLogits, kRefLogits, kRuledOut, kInfinitePenalty };

/// What a call leaves behind, on the device.
struct Report {
  Metrics metrics;
  Status status;
};

struct Functions {
  const char* (*error_text)(int error);
  /// 0 with an error where there is no driver.
  int (*device_count)(int* host_count);
  int (*device_info)(int device, DeviceInfo* host_info);
  int (*memory_info)(int device, std::size_t* host_free, std::size_t* host_total);
  int (*allocate)(int device, std::size_t bytes, void** host_pointer);
  int (*release)(int device, void* pointer);
  int (*create_stream)(int device, void** host_stream);
  /// Return when done.
  int (*upload)(int device, void* to, const void* host_from, std::size_t bytes, void* stream);
  int (*download)(int device, void* host_to, const void* from, std::size_t bytes, void* stream);

  /// Bytes of workspace (aligned to 16) that policy_loss needs.
  std::size_t (*loss_workspace)(std::int64_t rows);
  /// rapo::policy_loss with every array on the device. Only enqueues: nothing is allocated, nothing waited
  /// for, so that it can be captured in a graph. The batch is taken as validate_loss_shape would have it;
  /// what else can be wrong ends up in report->status. With an invalid entry nothing is written but the
  /// report; a row with a fault in its logits is left as it was.
  int (*policy_loss)(int device, const Batch* host_batch, const Objective* host_objective,
                     const Outputs* host_outputs, void* workspace, Report* report, void* stream);
  /// rapo::gather_logprobs in the same way; needs no workspace, and leaves report->metrics alone.
  int (*gather_logprobs)(int device, const LogitRows* host_logits, const std::int32_t* token_ids,
                         double temperature, const GatherOutputs* host_outputs, Report* report, void* stream);

  /// Looks at the entries of all rows as policy_loss does first, and puts what is invalid into
  /// report->status.
  int (*check_batch)(int device, const Batch* host_batch, const Objective* host_objective, Report* report,
                     void* stream);
  /// Opens cuBLASLt for the device, which fused_head_loss needs; to be called once before it.
  int (*fused_head_prepare)(int device);
  /// Bytes of workspace (aligned to 256) that fused_head_loss needs for chunks of so many rows.
  std::size_t (*fused_head_workspace)(const FusedHead* host_head, std::int64_t chunk_rows);
  /// The objective with logits = hidden weight^T for the policy and the reference, chunk_rows >= 1 rows at a
  /// time: loss and metrics in the report, grad_hidden written, grad_weight added to, the outputs' arrays
  /// with one entry a row written (grad_logits is not looked at). Only enqueues, as policy_loss does. The
  /// same chunk_rows give the same bits. Whatever is wrong in the report's status leaves grad_hidden and
  /// grad_weight unspecified.
  int (*fused_head_loss)(int device, const FusedHead* host_head, const Objective* host_objective,
                         const Outputs* host_outputs, std::int64_t chunk_rows, void* workspace,
                         Report* report, void* stream);
};

}  // namespace rapo::cuda

extern "C" {
/// Null where the caller was built for another version.
using RapoCudaFunctions = const rapo::cuda::Functions* (*)(int abi_version);
}
