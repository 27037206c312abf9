#include "validate.h"

#include <cmath>
#include <cstring>
#include <sstream>
#include <string>

#include "dtypes.h"
#include "penalty.h"
#include "surrogate.h"

namespace rapo {
namespace {

template <class... Parts>
[[noreturn]] void invalid(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw Error(ErrorCode::kInvalidArgument, message.str());
}

void check_array(const char* field, const void* data, std::int64_t rows) {
  if (!data && rows > 0) invalid(field, " is missing");
}

void check_matrix(const char* field, const void* data, std::int64_t rows, std::int64_t vocab_size,
                  std::int64_t stride) {
  check_array(field, data, rows);
  if (stride < vocab_size)
    invalid(field, "' row stride is ", stride, ", expected at least vocabSize = ", vocab_size);
}

void check_shape(std::int64_t rows, std::int64_t vocab_size, DType dtype, bool oracle) {
  if (rows < 0) invalid("rows is ", rows, ", expected >= 0");
  if (vocab_size < 1) invalid("vocabSize is ", vocab_size, ", expected >= 1");
  if (vocab_size > std::int64_t{1} << 31) invalid("vocabSize is ", vocab_size, ", expected <= 2^31");
  if (dtype == DType::kFloat64 && !oracle) invalid("dtype is float64, which only the reference takes");
}

[[noreturn]] void invalid_token_id(std::int32_t id, std::int64_t row, std::int64_t vocab_size) {
  invalid("tokenIds[", row, "] is ", id, ", outside [0, ", vocab_size, ")");
}

void check_token_id(std::int32_t id, std::int64_t row, std::int64_t vocab_size) {
  if (id < 0 || id >= vocab_size) invalid_token_id(id, row, vocab_size);
}

/// The number must be in its range of RAPO_OBJECTIVE_NUMBERS.
void check_number(const char* field, double x, double low, bool open, double high) {
  if ((open ? x > low : x >= low) && x <= high) return;
  if (high == kInfinite) invalid(field, " is ", x, ", expected >= ", low);
  if (high == kLargest) invalid(field, " is ", x, ", expected a finite number >= ", low);
  invalid(field, " is ", x, ", expected in ", open ? "(" : "[", low, ", ", high, "]");
}

void check_temperature(double temperature) {
#define RAPO_CHECK(member, js, value, low, open, high) \
  if (std::strcmp(js, "temperature") == 0) check_number(js, temperature, low, open, high);
  RAPO_OBJECTIVE_NUMBERS(RAPO_CHECK)
#undef RAPO_CHECK
}

void check_gradient(const Batch& batch, const Outputs& outputs) {
  if (!outputs.grad_logits) return;
  check_matrix("gradLogits", outputs.grad_logits, batch.rows, batch.vocab_size, outputs.grad_stride);
  if (outputs.grad_dtype != batch.dtype && outputs.grad_dtype != DType::kFloat32) {
    invalid("gradDtype is ", dtype_name(outputs.grad_dtype), ", expected ", dtype_name(batch.dtype),
            " or float32");
  }
  if (outputs.grad_logits == batch.logits) {
    if (outputs.grad_dtype != batch.dtype) invalid("a gradient in place must have the logits' dtype");
    if (outputs.grad_stride != batch.logits_stride)
      invalid("a gradient in place must have the logits' row stride");
  }
}

void check_rows(const Batch& batch, const Objective& objective) {
  for (std::int64_t i = 0; i < batch.rows; ++i) {
    const auto fault = row_fault(batch, objective, i);
    if (fault != RowFault::kNone) throw_row_fault(fault, batch, objective, i, batch.name_of(i));
  }
}

const char* expected(RowRange range) {
  switch (range) {
    case RowRange::kNotNegative:
      return "expected a finite number >= 0";
    case RowRange::kUnit:
      return "expected in [0, 1]";
    default:
      return "expected a finite number";
  }
}

}  // namespace

void validate_objective(const Objective& o) {
  if (std::strcmp(penalty_name(o.penalty), "unknown") == 0) invalid("penalty is not one of the known ones");
  if (std::strcmp(surrogate_name(o.surrogate), "unknown") == 0) {
    invalid("surrogate is not one of the known ones");
  }
#define RAPO_CHECK(member, js, value, low, open, high) check_number(js, o.member, low, open, high);
  RAPO_OBJECTIVE_NUMBERS(RAPO_CHECK)
#undef RAPO_CHECK
  if (!(o.ratio_cap >= 1 + o.clip_high)) {
    invalid("ratioCap is ", o.ratio_cap, ", expected at least 1 + clipHigh = ", 1 + o.clip_high);
  }
  if (!is_capped(o.surrogate) && !std::isinf(o.ratio_cap)) {
    invalid("ratioCap is ", o.ratio_cap, ", but the surrogate ", surrogate_name(o.surrogate),
            " has no such bound");
  }
  if (o.surrogate == Surrogate::kSapo && !(o.clip_low == 1 && std::isinf(o.clip_high))) {
    invalid("the surrogate sapo does not clip: make clipLow 1 and clipHigh infinite");
  }
  if (o.penalty == Penalty::kNone && o.kl_coef != 0) {
    invalid("klCoef is ", o.kl_coef, ", but the penalty is none: make it 0 or choose a penalty");
  }
}

void throw_row_fault(RowFault fault, const Batch& batch, const Objective& objective, std::int64_t row,
                     std::int64_t name) {
  if (fault == RowFault::token_ids) invalid_token_id(batch.token_ids[row], name, batch.vocab_size);
#define RAPO_THROW(array, type, js, required, range, ...)                              \
  if (fault == RowFault::array) {                                                      \
    invalid(js "[", name, "] is ", batch.array[row], ", ", expected(RowRange::range)); \
  }
  RAPO_ROW_ARRAYS(RAPO_THROW)
#undef RAPO_THROW
  invalid("refWeights[", name, "] is ", batch.ref_weights[row], ", but the penalty ",
          penalty_name(objective.penalty),
          objective.penalty == Penalty::kNone ? " has no reference to reweight"
                                              : " is defined for the reference as it is",
          ": leave refWeights out or make them 1");
}

Extent Extent::matrix(const char* name, const void* data, std::int64_t rows, std::int64_t columns,
                      std::int64_t stride, DType dtype, bool written, const char* in_place_of) {
  const auto size = static_cast<std::int64_t>(dtype_size(dtype));
  const std::int64_t bytes = rows == 0 ? 0 : ((rows - 1) * stride + columns) * size;
  return {name, data, bytes, written, in_place_of, columns * size, stride * size};
}

namespace {

bool overlap(const Extent& a, const Extent& b) {
  if (!a.data || !b.data || a.bytes == 0 || b.bytes == 0) return false;
  const auto x = reinterpret_cast<std::uintptr_t>(a.data), y = reinterpret_cast<std::uintptr_t>(b.data);
  if (x >= y + static_cast<std::uintptr_t>(b.bytes) || y >= x + static_cast<std::uintptr_t>(a.bytes))
    return false;
  if (a.step == 0 || a.step != b.step) return true;
  // Two sets of columns of one matrix may interleave without overlapping.
  const auto step = static_cast<std::uintptr_t>(a.step);
  const auto from_a = static_cast<std::int64_t>((y % step + step - x % step) % step);
  return from_a < a.row_bytes || from_a + b.row_bytes > a.step;
}

}  // namespace

void check_overlaps(const std::vector<Extent>& extents) {
  for (const Extent& written : extents) {
    for (const Extent& other : extents) {
      if (!written.written || &other == &written || !overlap(written, other)) continue;
      const bool may = written.in_place_of && std::strcmp(written.in_place_of, other.name) == 0;
      if (!may) invalid(written.name, " overlaps ", other.name);
      if (written.data != other.data) {
        invalid(written.name, " overlaps ", other.name, " without being the same array");
      }
    }
  }
}

std::vector<Extent> extents_of(const Batch& batch, const Outputs& outputs) {
  const auto n = batch.rows, v = batch.vocab_size;
  std::vector<Extent> extents = {
      Extent::matrix("gradLogits", outputs.grad_logits, n, v, outputs.grad_stride, outputs.grad_dtype, true,
                     "logits"),
      Extent::matrix("logits", batch.logits, n, v, batch.logits_stride, batch.dtype),
      Extent::matrix("refLogits", batch.ref_logits, n, v, batch.ref_stride, batch.dtype),
      {"sequenceOffsets", batch.sequence_offsets, (batch.sequences + 1) * std::int64_t{sizeof(std::int32_t)}},
      {"sequenceLogRatios", batch.sequence_log_ratios, n * std::int64_t{sizeof(double)}},
  };
  extend_by_rows(extents, batch, outputs);
  return extents;
}

void extend_by_rows(std::vector<Extent>& extents, const Batch& batch, const Outputs& outputs) {
#define RAPO_INPUT(name, type, js, ...) \
  extents.push_back({js, batch.name, batch.rows * std::int64_t{sizeof(type)}});
#define RAPO_OUTPUT(name, type, js) \
  extents.push_back({js, outputs.name, batch.rows * std::int64_t{sizeof(type)}, true});
  RAPO_ROW_ARRAYS(RAPO_INPUT)
  RAPO_ROW_OUTPUTS(RAPO_OUTPUT)
#undef RAPO_INPUT
#undef RAPO_OUTPUT
}

void validate_loss(const Batch& batch, const Objective& objective, const Outputs& outputs, bool oracle) {
  validate_loss_shape(batch, objective, outputs, oracle);
  check_overlaps(extents_of(batch, outputs));
  check_rows(batch, objective);
}

void validate_loss_shape(const Batch& batch, const Objective& objective, const Outputs& outputs,
                         bool oracle) {
  validate_objective(objective);
  check_shape(batch.rows, batch.vocab_size, batch.dtype, oracle);
  check_matrix("logits", batch.logits, batch.rows, batch.vocab_size, batch.logits_stride);
#define RAPO_PRESENT(name, type, js, required, ...) \
  if (required) check_array(js, batch.name, batch.rows);
  RAPO_ROW_ARRAYS(RAPO_PRESENT)
#undef RAPO_PRESENT
  if (objective.penalty != Penalty::kNone) {
    if (!batch.ref_logits && batch.rows > 0) {
      invalid("refLogits is missing, and the penalty ", penalty_name(objective.penalty), " needs them");
    }
    check_matrix("refLogits", batch.ref_logits, batch.rows, batch.vocab_size, batch.ref_stride);
  } else if (batch.ref_logits) {
    invalid("refLogits are given, but the penalty is none: leave them out");
  }
  const bool gspo = objective.surrogate == Surrogate::kGspo;
  if (gspo && !batch.sequence_offsets && !batch.sequence_log_ratios) {
    invalid("sequenceOffsets is missing, and the surrogate gspo needs them");
  }
  if (!gspo && (batch.sequence_offsets || batch.sequence_log_ratios)) {
    invalid("sequenceOffsets are given, but only the surrogate gspo reads them, not ",
            surrogate_name(objective.surrogate));
  }
  check_gradient(batch, outputs);
}

void validate_gather_shape(const LogitRows& logits, const std::int32_t* token_ids, double temperature,
                           const GatherOutputs& outputs, bool oracle) {
  check_shape(logits.rows, logits.vocab_size, logits.dtype, oracle);
  check_matrix("logits", logits.data, logits.rows, logits.vocab_size, logits.stride);
  check_temperature(temperature);
  if (outputs.logprobs) check_array("tokenIds", token_ids, logits.rows);
}

std::vector<Extent> extents_of(const LogitRows& logits, const std::int32_t* token_ids,
                               const GatherOutputs& outputs) {
  const auto bytes = logits.rows * std::int64_t{sizeof(float)};
  return {Extent::matrix("logits", logits.data, logits.rows, logits.vocab_size, logits.stride, logits.dtype),
          {"tokenIds", token_ids, bytes},
          {"logprobs", outputs.logprobs, bytes, true},
          {"entropy", outputs.entropy, bytes, true},
          {"logSumExp", outputs.log_sum_exp, bytes, true}};
}

void validate_gather(const LogitRows& logits, const std::int32_t* token_ids, double temperature,
                     const GatherOutputs& outputs, bool oracle) {
  validate_gather_shape(logits, token_ids, temperature, outputs, oracle);
  check_overlaps(extents_of(logits, token_ids, outputs));
  if (!outputs.logprobs) return;
  for (std::int64_t i = 0; i < logits.rows; ++i)
    check_token_id(token_ids[i], logits.name_of(i), logits.vocab_size);
}

void throw_token_id(std::int32_t id, std::int64_t row, std::int64_t vocab_size) {
  invalid_token_id(id, row, vocab_size);
}

void throw_bad_logits(const char* field, std::int64_t row, const void* data, DType dtype,
                      std::int64_t vocab_size) {
  std::ostringstream message;
  message << "row " << row << ": ";
  for (std::int64_t v = 0; v < vocab_size; ++v) {
    const double z = load_scalar(data, dtype, v);
    if (std::isnan(z) || z == std::numeric_limits<double>::infinity()) {
      message << field << "[" << row << ", " << v << "] is " << (std::isnan(z) ? "NaN" : "+inf");
      throw Error(ErrorCode::kNonFinite, message.str());
    }
  }
  message << "every one of its " << field << " is -inf, which is no distribution";
  throw Error(ErrorCode::kNonFinite, message.str());
}

}  // namespace rapo
