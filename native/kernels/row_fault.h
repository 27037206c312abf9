// Faults of a row's entries. The logits are checked elsewhere.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"
#include "objective.h"
#include "penalty.h"

namespace rapo {

/// Each fault is named after the array whose entry is out of range.
enum class RowFault : std::uint8_t {
  kNone,
#define RAPO_FAULT(name, ...) name,
  RAPO_ROW_ARRAYS(RAPO_FAULT)
#undef RAPO_FAULT
      kReweighted,  // a ref weight other than 1, with a penalty that does not reweight the reference
};

RAPO_HOST_DEVICE inline bool in_range(RowRange range, double x, std::int64_t vocab_size) {
  switch (range) {
    case RowRange::kTokenId:
      return x >= 0 && x < static_cast<double>(vocab_size);
    case RowRange::kFinite:
      return std::isfinite(x);
    case RowRange::kNotNegative:
      return std::isfinite(x) && x >= 0;
    case RowRange::kUnit:
      return x >= 0 && x <= 1;
  }
  return false;
}

/// The first fault: that of the token weight, then those of the other arrays in the order of RAPO_ROW_ARRAYS.
/// In a masked row only the token weight is checked.
RAPO_HOST_DEVICE inline RowFault row_fault(const Batch& batch, const Objective& objective, std::int64_t i) {
  const float n = batch.token_weights[i];
  if (!std::isfinite(n)) return RowFault::token_weights;
  if (n == 0) return RowFault::kNone;
#define RAPO_CHECK(name, type, js, required, range, ...)                           \
  if (batch.name && !in_range(RowRange::range, batch.name[i], batch.vocab_size)) { \
    return RowFault::name;                                                         \
  }
  RAPO_ROW_ARRAYS(RAPO_CHECK)
#undef RAPO_CHECK
  if (!traits(objective.penalty).reweighted && batch.ref_weights && batch.ref_weights[i] != 1)
    return RowFault::kReweighted;
  return RowFault::kNone;
}

}  // namespace rapo
