// The checks of everything but the logits' values, made before anything is written.
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

/// The same without reading the arrays, which may lie on a device.
void validate_loss_shape(const Batch& batch, const Objective& objective, const Outputs& outputs, bool oracle);
void validate_gather_shape(const LogitRows& logits, const std::int32_t* token_ids, double temperature,
                           const GatherOutputs& outputs, bool oracle);

/// The memory of one array of a call; null if the array was left out.
struct Extent {
  const char* name;
  const void* data;
  std::int64_t bytes;  // from the first byte to the last
  bool written = false;
  const char* in_place_of = nullptr;     // the one array whose place this array may take
  std::int64_t row_bytes = 0, step = 0;  // for a matrix: bytes of a row, and from row to row

  static Extent matrix(const char* name, const void* data, std::int64_t rows, std::int64_t columns,
                       std::int64_t stride, DType dtype, bool written = false,
                       const char* in_place_of = nullptr);
};
std::vector<Extent> extents_of(const Batch& batch, const Outputs& outputs);
std::vector<Extent> extents_of(const LogitRows& logits, const std::int32_t* token_ids,
                               const GatherOutputs& outputs);
/// Adds the row arrays only.
void extend_by_rows(std::vector<Extent>& extents, const Batch& batch, const Outputs& outputs);
/// Throws kInvalidArgument if an array that is written overlaps another array.
void check_overlaps(const std::vector<Extent>& extents);

/// Throws kInvalidArgument for a fault of row `row`, which the message calls `name`.
[[noreturn]] void throw_row_fault(RowFault fault, const Batch& batch, const Objective& objective,
                                  std::int64_t row, std::int64_t name);
[[noreturn]] void throw_token_id(std::int32_t id, std::int64_t row, std::int64_t vocab_size);

/// Throws kNonFinite. The message names the row and the first bad word in it.
[[noreturn]] void throw_bad_logits(const char* field, std::int64_t row, const void* data, DType dtype,
                                   std::int64_t vocab_size);

}  // namespace rapo
