// What a long call shares with whoever started it: a cancel flag going in, progress coming out.
#pragma once

#include <atomic>
#include <cstdint>

#include "error.h"

namespace rapo {

struct Control {
  std::atomic<bool> cancelled{false};
  std::atomic<std::int64_t> done{0};   // units finished; what a unit is, the call documents
  std::atomic<std::int64_t> total{0};  // 0 while unknown

  /// Throws Error(kAborted) once the caller has raised the flag.
  void check() const {
    if (cancelled.load(std::memory_order_relaxed)) throw Error(ErrorCode::kAborted, "the call was aborted");
  }
};

}  // namespace rapo
