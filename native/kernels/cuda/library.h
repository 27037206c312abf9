// The interface of the CUDA library: one table of functions, which open.cpp looks up in the shared library.
// Pointers are device addresses unless the name says "host". A stream is a cudaStream_t; null is the default
// stream. An int result is a cudaError_t.
#pragma once

#include <cstddef>
#include <cstdint>

#include "fused_head.h"
#include "kernels/loss.h"
#include "kernels/objective.h"

namespace rapo::cuda {

/// Must be raised whenever anything in this file changes. A change in the size of Batch or Outputs
/// (row_arrays.h) shows without that.
constexpr int kAbiVersion = (5 << 16) + static_cast<int>(sizeof(Batch) + sizeof(Objective) + sizeof(Outputs));

struct DeviceInfo {
  char name[256] = {};
  int major = 0, minor = 0;  // compute capability
  int multiprocessors = 0;
  std::int64_t memory = 0, l2 = 0, shared_per_block = 0;  // bytes
};

/// The first row with a fault, as (row << 8 | fault); kNoFault if there is none.
struct Status {
  std::uint64_t invalid, non_finite;
};
constexpr std::uint64_t kNoFault = ~std::uint64_t{0};
/// A value of Status::invalid: all entries are valid, but bad logits stopped the call before its loss.
constexpr std::uint64_t kStopped = kNoFault - 1;

/// Faults in Status::invalid in addition to those of RowFault: rows of one sequence that differ, and offsets
/// that do not cover the rows.
constexpr int kFaultSequence = 64, kFaultOffsets = 65;

/// The faults in Status::non_finite.
enum class DataFault : std::uint8_t { kNone, kLogits, kRefLogits, kRuledOut, kInfinitePenalty };

/// The results that a call leaves on the device.
struct Report {
  Metrics metrics;
  Status status;
};

struct Functions {
  const char* (*error_text)(int error);
  /// 0, and an error, if there is no driver.
  int (*device_count)(int* host_count);
  int (*device_info)(int device, DeviceInfo* host_info);
  int (*memory_info)(int device, std::size_t* host_free, std::size_t* host_total);
  int (*allocate)(int device, std::size_t bytes, void** host_pointer);
  int (*release)(int device, void* pointer);
  int (*create_stream)(int device, void** host_stream);
  /// These return when the copy is done.
  int (*upload)(int device, void* to, const void* host_from, std::size_t bytes, void* stream);
  int (*download)(int device, void* host_to, const void* from, std::size_t bytes, void* stream);

  /// Bytes of workspace (aligned to 16) that policy_loss needs.
  std::size_t (*loss_workspace)(std::int64_t rows);
  /// rapo::policy_loss with every array on the device. The call only enqueues: it allocates nothing and waits
  /// for nothing, so that it can be captured in a graph. The batch must have passed validate_loss_shape;
  /// other faults end up in report->status. If an entry is invalid, only the report is written. A row with a
  /// fault in its logits is left as it was.
  int (*policy_loss)(int device, const Batch* host_batch, const Objective* host_objective,
                     const Outputs* host_outputs, void* workspace, Report* report, void* stream);
  /// rapo::gather_logprobs in the same way. It needs no workspace and does not change report->metrics.
  int (*gather_logprobs)(int device, const LogitRows* host_logits, const std::int32_t* token_ids,
                         double temperature, const GatherOutputs* host_outputs, Report* report, void* stream);

  /// Checks the entries of all rows as policy_loss does first, and writes what is invalid to report->status.
  int (*check_batch)(int device, const Batch* host_batch, const Objective* host_objective, Report* report,
                     void* stream);
  /// Opens cuBLASLt for the device. Must be called once before fused_head_loss.
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
