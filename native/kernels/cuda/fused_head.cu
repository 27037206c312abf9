// The fused head on the device: the order of products and kernels, chunk by chunk.
#include "../rows.h"
#include "fused_head.h"
#include "gemm.h"
#include "launch.h"

namespace rapo::cuda {
namespace {

struct HiddenRows {
  const void* from;
  std::int64_t from_stride;
  void* to;  // (rows, to_stride); `channels` elements of each row are written
  std::int64_t to_stride, rows, channels;
  const float* token_weights;
};

/// Masked rows are written as zeros: a NaN in one would reach every element of the weight's gradient.
template <class T>
__global__ void copy_hidden(const __grid_constant__ HiddenRows call) {
  for (std::int64_t i = blockIdx.x; i < call.rows; i += gridDim.x) {
    const bool masked = call.token_weights[i] == 0;
    const T* from = typed_row<T>(call.from, call.from_stride, i);
    T* to = static_cast<T*>(call.to) + i * call.to_stride;
    for (std::int64_t c = threadIdx.x; c < call.channels; c += blockDim.x) {
      store1(to + c, masked ? T{} : load1(from + c));
    }
  }
}

constexpr std::size_t kAligned = 256;

std::size_t aligned(std::size_t bytes) { return (bytes + kAligned - 1) / kAligned * kAligned; }

/// Elements from row to row in the chunk's arrays, rounded up so that rows begin where vectors do.
std::int64_t padded(std::int64_t columns, DType dtype) {
  const std::int64_t width = 16 / static_cast<std::int64_t>(dtype_size(dtype));
  return (columns + width - 1) / width * width;
}

/// The offset of each part of the workspace.
struct Layout {
  std::size_t loss, gemm, hidden, logits, ref_logits, bytes;
  std::int64_t hidden_stride, logits_stride;

  Layout(const FusedHead& head, std::int64_t chunk_rows) {
    const Batch& b = head.batch;
    hidden_stride = padded(head.channels, b.dtype);
    logits_stride = padded(b.vocab_size, b.dtype);
    const std::size_t rows = static_cast<std::size_t>(chunk_rows) * dtype_size(b.dtype);
    const std::size_t matrix = aligned(rows * static_cast<std::size_t>(logits_stride));
    loss = 0;
    gemm = aligned(loss_workspace(b.rows));
    hidden = gemm + kGemmWorkspace;
    logits = hidden + aligned(rows * static_cast<std::size_t>(hidden_stride));
    ref_logits = logits + matrix;
    bytes = ref_logits + (head.ref_hidden ? matrix : 0);
  }
};

/// The chunks of one call.
class Chunks {
 public:
  Chunks(int device, const FusedHead& head, std::int64_t chunk_rows, void* workspace, cudaStream_t stream)
      : device_(device),
        head_(head),
        layout_(head, chunk_rows),
        base_(static_cast<char*>(workspace)),
        chunk_rows_(chunk_rows),
        stream_(stream) {}

  /// Calls body(first, part) for each chunk. `part` is the loss call for the chunk; the policy's logits are
  /// computed.
  template <class F>
  int for_each(const LossCall& call, F&& body) const {
    for (std::int64_t first = 0; first < call.batch.rows; first += chunk_rows_) {
      const std::int64_t rows = std::min(chunk_rows_, call.batch.rows - first);
      LossCall part = call;
      part.batch = rows_from(call.batch, first, rows);
      part.batch.logits = base_ + layout_.logits;
      part.batch.logits_stride = layout_.logits_stride;
      part.outputs = rows_from(call.outputs, first);
      part.tokens += first;
      part.ratios += first;
      part.first_row = first;
      RAPO_TRY(copy(first, part));
      RAPO_TRY_ANY(multiply(hidden(rows), weight(), logits(false)));
      RAPO_TRY_ANY(body(first, part));
    }
    return cudaSuccess;
  }

  int losses(std::int64_t first, LossCall& part) const {
    const std::int64_t rows = part.batch.rows;
    const DType dtype = head_.batch.dtype;
    if (head_.ref_hidden) {
      const Operand ref_hidden{row_of(head_.ref_hidden, dtype, head_.ref_hidden_stride, first), dtype, rows,
                               head_.ref_channels, head_.ref_hidden_stride};
      const Operand ref_weight{head_.ref_weight,        dtype, head_.batch.vocab_size, head_.ref_channels,
                               head_.ref_weight_stride, true};
      RAPO_TRY_ANY(multiply(ref_hidden, ref_weight, logits(true)));
      part.batch.ref_logits = base_ + layout_.ref_logits;
      part.batch.ref_stride = layout_.logits_stride;
    }
    if (head_.grad_hidden || head_.grad_weight) {
      part.outputs.grad_logits = base_ + layout_.logits;
      part.outputs.grad_dtype = dtype;
      part.outputs.grad_stride = layout_.logits_stride;
    }
    RAPO_TRY(enqueue_rows(device_, part, stream_));
    // From here on the memory of the logits holds their gradient.
    Operand gradient{base_ + layout_.logits, dtype, rows, head_.batch.vocab_size, layout_.logits_stride};
    if (head_.grad_hidden) {
      void* to = row_of(head_.grad_hidden, head_.grad_hidden_dtype, head_.grad_hidden_stride, first);
      Operand by = weight();
      by.transposed = false;
      RAPO_TRY_ANY(multiply(gradient, by, {to, head_.grad_hidden_dtype, head_.grad_hidden_stride, false}));
    }
    if (head_.grad_weight) {
      gradient.transposed = true;
      RAPO_TRY_ANY(multiply(gradient, hidden(rows),
                            {head_.grad_weight, DType::kFloat32, head_.grad_weight_stride, true}));
    }
    return cudaSuccess;
  }

 private:
  cudaError_t copy(std::int64_t first, const LossCall& part) const {
    const DType dtype = head_.batch.dtype;
    const HiddenRows call{row_of(head_.hidden, dtype, head_.hidden_stride, first),
                          head_.hidden_stride,
                          base_ + layout_.hidden,
                          layout_.hidden_stride,
                          part.batch.rows,
                          head_.channels,
                          part.batch.token_weights};
    const Launch shape{static_cast<int>(std::min<std::int64_t>(part.batch.rows, kMostCopyBlocks)),
                       kCopyThreads, 0, 1, stream_};
    return dtype == DType::kFloat32 ? launch(copy_hidden<float>, shape, call)
                                    : launch(copy_hidden<BF16>, shape, call);
  }

  Operand hidden(std::int64_t rows) const {
    return {base_ + layout_.hidden, head_.batch.dtype, rows, head_.channels, layout_.hidden_stride};
  }
  Operand weight() const {
    return {head_.weight,   head_.batch.dtype,   head_.batch.vocab_size,
            head_.channels, head_.weight_stride, true};
  }
  Product logits(bool reference) const {
    return {base_ + (reference ? layout_.ref_logits : layout_.logits), head_.batch.dtype,
            layout_.logits_stride, false};
  }
  int multiply(const Operand& a, const Operand& b, const Product& c) const {
    return gemm(device_, a, b, c, base_ + layout_.gemm, stream_);
  }

  static constexpr int kCopyThreads = 256, kMostCopyBlocks = 4096;

  const int device_;
  const FusedHead& head_;
  const Layout layout_;
  char* const base_;
  const std::int64_t chunk_rows_;
  const cudaStream_t stream_;
};

}  // namespace

std::size_t fused_head_workspace(const FusedHead& head, std::int64_t chunk_rows) {
  return Layout(head, chunk_rows).bytes;
}

int fused_head_loss(int device, const FusedHead& head, const Objective& objective, const Outputs& outputs,
                    std::int64_t chunk_rows, void* workspace, Report* report, cudaStream_t stream) {
  const Chunks chunks(device, head, chunk_rows, workspace, stream);
  LossCall call = loss_call(head.batch, objective, outputs, workspace, report);
  call.outputs.grad_logits = nullptr;
  RAPO_TRY(enqueue_checks(call, stream));
  if (head.batch.sequence_offsets) {
    // gspo needs one more product per chunk: all log-probs of a sequence must be known before its first
    // gradient.
    if (head.batch.old_logprobs) {
      RAPO_TRY_ANY(chunks.for_each(
          call, [&](std::int64_t, LossCall& part) { return enqueue_logprobs(device, part, stream); }));
    }
    RAPO_TRY(enqueue_sequence_ratios(call, stream));
  }
  RAPO_TRY_ANY(
      chunks.for_each(call, [&](std::int64_t first, LossCall& part) { return chunks.losses(first, part); }));
  return enqueue_metrics(call, stream);
}

}  // namespace rapo::cuda
