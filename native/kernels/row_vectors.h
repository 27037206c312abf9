// A batch's row arrays as vectors.
#pragma once

#include <cstddef>
#include <vector>

#include "objective.h"

namespace rapo {

/// One vector for each row array. An empty vector stands for an array that was left out.
struct RowVectors {
#define RAPO_VECTOR(name, type, ...) std::vector<type> name;
  RAPO_ROW_ARRAYS(RAPO_VECTOR)
#undef RAPO_VECTOR

  RowVectors() = default;
  /// Copies the arrays of a batch, which must be in host memory.
  explicit RowVectors(const Batch& batch) {
#define RAPO_COPY(name, ...) \
  if (batch.name) name.assign(batch.name, batch.name + batch.rows);
    RAPO_ROW_ARRAYS(RAPO_COPY)
#undef RAPO_COPY
  }

  /// Makes the batch's row arrays point to these vectors.
  void attach(Batch& batch) const {
#define RAPO_ATTACH(name, ...) batch.name = name.empty() ? nullptr : name.data();
    RAPO_ROW_ARRAYS(RAPO_ATTACH)
#undef RAPO_ATTACH
  }

  /// The given rows, in the given order.
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
