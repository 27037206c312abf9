#include "checks.h"

#include <string>
#include <vector>

#include "../dtypes.h"
#include "../penalty.h"
#include "../validate.h"
#include "error.h"

namespace rapo::cuda {
namespace {

/// The argument `field` must be a matrix of rows with C elements.
void check_rows_of(const char* field, const void* data, std::int64_t rows, std::int64_t channels,
                   std::int64_t stride, const char* of) {
  if (!data && rows > 0) invalid(std::string(field) + " is missing");
  if (stride < channels) {
    invalid(std::string(field) + "'s row stride is " + std::to_string(stride) + ", expected at least " + of +
            " = " + std::to_string(channels));
  }
}

}  // namespace

void check_sequences(const Batch& batch) {
  if (batch.sequence_offsets && batch.sequences == 0 && batch.rows > 0) {
    invalid("sequenceOffsets has one entry, expected one more than sequences");
  }
}

/// The check of overlaps that validate_loss makes, for the arrays of the head.
void check_head_overlaps(const FusedHead& head, const Outputs& outputs, const HeadWorkspace& workspace) {
  const Batch& b = head.batch;
  const auto n = b.rows, v = b.vocab_size;
  std::vector<Extent> extents = {
      Extent::matrix("gradHidden", head.grad_hidden, n, head.channels, head.grad_hidden_stride,
                     head.grad_hidden_dtype, true, "hidden"),
      Extent::matrix("gradWeight", head.grad_weight, v, head.channels, head.grad_weight_stride,
                     DType::kFloat32, true),
      {"workspace", workspace.data, static_cast<std::int64_t>(workspace.bytes), true},
      Extent::matrix("hidden", head.hidden, n, head.channels, head.hidden_stride, b.dtype),
      Extent::matrix("weight", head.weight, v, head.channels, head.weight_stride, b.dtype),
      Extent::matrix("refHidden", head.ref_hidden, n, head.ref_channels, head.ref_hidden_stride, b.dtype),
      Extent::matrix("refWeight", head.ref_weight, v, head.ref_channels, head.ref_weight_stride, b.dtype),
      {"sequenceOffsets", b.sequence_offsets, (b.sequences + 1) * std::int64_t{sizeof(std::int32_t)}},
  };
  extend_by_rows(extents, b, outputs);
  check_overlaps(extents);
}

void validate_head(const FusedHead& head, const Objective& objective, const Outputs& outputs) {
  const Batch& b = head.batch;
  if (b.dtype != DType::kFloat32 && b.dtype != DType::kBFloat16) {
    invalid(std::string("dtype is ") + dtype_name(b.dtype) + ", expected float32 or bfloat16");
  }
  if (head.channels < 1) invalid("channels is " + std::to_string(head.channels) + ", expected >= 1");
  check_rows_of("hidden", head.hidden, b.rows, head.channels, head.hidden_stride, "channels");
  check_rows_of("weight", head.weight, b.vocab_size, head.channels, head.weight_stride, "channels");
  const bool penalty = objective.penalty != Penalty::kNone;
  if (penalty && !head.ref_hidden && b.rows > 0) {
    invalid(std::string("refHidden is missing, and the penalty ") + penalty_name(objective.penalty) +
            " needs it");
  }
  if (!penalty && head.ref_hidden) invalid("refHidden is given, but the penalty is none: leave it out");
  if (head.ref_hidden) {
    if (head.ref_channels < 1)
      invalid("refChannels is " + std::to_string(head.ref_channels) + ", expected >= 1");
    check_rows_of("refHidden", head.ref_hidden, b.rows, head.ref_channels, head.ref_hidden_stride,
                  "refChannels");
    check_rows_of("refWeight", head.ref_weight, b.vocab_size, head.ref_channels, head.ref_weight_stride,
                  "refChannels");
  }
  if (head.grad_hidden) {
    check_rows_of("gradHidden", head.grad_hidden, b.rows, head.channels, head.grad_hidden_stride, "channels");
    if (head.grad_hidden_dtype != b.dtype && head.grad_hidden_dtype != DType::kFloat32) {
      invalid(std::string("gradHidden is ") + dtype_name(head.grad_hidden_dtype) + ", expected " +
              dtype_name(b.dtype) + " or float32");
    }
    if (head.grad_hidden == head.hidden &&
        !(head.grad_hidden_dtype == b.dtype && head.grad_hidden_stride == head.hidden_stride)) {
      invalid("gradHidden in the place of hidden must have its dtype and row stride");
    }
  }
  if (head.grad_weight) {
    check_rows_of("gradWeight", head.grad_weight, b.vocab_size, head.channels, head.grad_weight_stride,
                  "channels");
  }
  // The remaining arguments are checked like those of a batch that has logits.
  Batch batch = b;
  batch.logits = head.hidden;
  batch.ref_logits = head.ref_hidden;
  batch.logits_stride = batch.ref_stride = b.vocab_size;
  Outputs per_row = outputs;
  per_row.grad_logits = nullptr;
  validate_loss_shape(batch, objective, per_row, false);
  check_sequences(b);
}

}  // namespace rapo::cuda
