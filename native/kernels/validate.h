// The door: everything but the logits' values is checked here, before anything is written.
#pragma once

#include <cstdint>
#include <vector>

#include "loss.h"
#include "row_fault.h"

namespace rapo {

void validate_objective(const Objective& objective);
void validate_loss(const Batch& batch, const Objective& objective, const Outputs& outputs, bool oracle);
void validate_gather(const LogitRows& logits, const std::int32_t* token_ids, double temperature,
                     const GatherOutputs& outputs, bool oracle);

/// The same without looking into the arrays, which may lie on a device.
void validate_loss_shape(const Batch& batch, const Objective& objective, const Outputs& outputs, bool oracle);
void validate_gather_shape(const LogitRows& logits, const std::int32_t* token_ids, double temperature,
                           const GatherOutputs& outputs, bool oracle);

/// An array of a call and where it lies; null: it was left out.
struct Extent {
  const char* name;
  const void* data;
  std::int64_t bytes;  // from its first one to its last
  bool written = false;
  const char* in_place_of = nullptr;     // the one array whose place this one may take
  std::int64_t row_bytes = 0, step = 0;  // of a matrix: a row's, and from row to row

  static Extent matrix(const char* name, const void* data, std::int64_t rows, std::int64_t columns,
                       std::int64_t stride, DType dtype, bool written = false,
                       const char* in_place_of = nullptr);
};
std::vector<Extent> extents_of(const Batch& batch, const Outputs& outputs);
std::vector<Extent> extents_of(const LogitRows& logits, const std::int32_t* token_ids,
                               const GatherOutputs& outputs);
/// Adds the row arrays alone.
void extend_by_rows(std::vector<Extent>& extents, const Batch& batch, const Outputs& outputs);
/// Throws kInvalidArgument where a written array overlaps another one.
void check_overlaps(const std::vector<Extent>& extents);

/// Throws kInvalidArgument for a fault of the batch's row `row`, which the message calls `name`.
[[noreturn]] void throw_row_fault(RowFault fault, const Batch& batch, const Objective& objective,
                                  std::int64_t row, std::int64_t name);
[[noreturn]] void throw_token_id(std::int32_t id, std::int64_t row, std::int64_t vocab_size);

/// Throws kNonFinite naming the row, and the first offending token id in it.
[[noreturn]] void throw_bad_logits(const char* field, std::int64_t row, const void* data, DType dtype,
                                   std::int64_t vocab_size);

}  // namespace rapo
