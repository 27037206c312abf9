// Views of a part of a batch.
#pragma once

#include "objective.h"

namespace rapo {

template <class T>
void advance(T*& array, std::int64_t rows) {
  if (array) array += rows;
}

/// Rows [first, first + rows) of the batch's arrays with one entry per row. The arrays may lie on a device,
/// except row_names. Logits and sequences are not changed: the caller sets those of the part.
inline Batch rows_from(const Batch& batch, std::int64_t first, std::int64_t rows) {
  Batch part = batch;
  part.rows = rows;
#define RAPO_ADVANCE(name, ...) advance(part.name, first);
  RAPO_ROW_ARRAYS(RAPO_ADVANCE)
  advance(part.sequence_log_ratios, first);
  advance(part.row_names, first);
  return part;
}

/// The same for the arrays that are written for each row. The gradient is not changed.
inline Outputs rows_from(const Outputs& outputs, std::int64_t first) {
  Outputs part = outputs;
  RAPO_ROW_OUTPUTS(RAPO_ADVANCE)
#undef RAPO_ADVANCE
  return part;
}

}  // namespace rapo
