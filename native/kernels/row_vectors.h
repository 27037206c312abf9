// Copies of a batch's row arrays.
#pragma once

#include <cstddef>
#include <vector>

#include "objective.h"

namespace rapo {

/// One vector for each row array; one that is empty is left out.
struct RowVectors {
#define RAPO_VECTOR(name, type, ...) std::vector<type> name;
  RAPO_ROW_ARRAYS(RAPO_VECTOR)
#undef RAPO_VECTOR

  RowVectors() = default;
  /// Of a batch whose arrays are in host memory.
  explicit RowVectors(const Batch& batch) {
#define RAPO_COPY(name, ...) \
  if (batch.name) name.assign(batch.name, batch.name + batch.rows);
    RAPO_ROW_ARRAYS(RAPO_COPY)
#undef RAPO_COPY
  }

  /// Points the batch's row arrays here.
  void attach(Batch& batch) const {
#define RAPO_ATTACH(name, ...) batch.name = name.empty() ? nullptr : name.data();
    RAPO_ROW_ARRAYS(RAPO_ATTACH)
#undef RAPO_ATTACH
  }

  /// Those rows, in that order.
  template <class Index>
  RowVectors take(const std::vector<Index>& rows) const {
    RowVectors part;
#define RAPO_TAKE(name, ...) \
  for (std::size_t i = 0; i < rows.size() && !name.empty(); ++i) part.name.push_back(name[rows[i]]);
    RAPO_ROW_ARRAYS(RAPO_TAKE)
#undef RAPO_TAKE
    return part;
  }
};

}  // namespace rapo
