// What a long call shares with whoever started it: a cancel flag going in, progress coming out.
#pragma once

#include <atomic>
#include <cstdint>

#include "error.h"

namespace rapo {

struct Control {
  std::atomic<bool> cancelled{false};
  /// The environment that asked is ending: nobody will see the result, nor what the call leaves in memory.
  std::atomic<bool> abandoned{false};
  /// Set by a call that has begun to change what outlives it: an abort would leave half of the change.
  std::atomic<bool> committed{false};
  std::atomic<std::int64_t> done{0};   // units finished; what a unit is, the call documents
  std::atomic<std::int64_t> total{0};  // 0 while unknown

  /// Throws Error(kAborted) where the call is to stop.
  void check() const {
    const auto is = [](const std::atomic<bool>& flag) { return flag.load(std::memory_order_relaxed); };
    if (is(abandoned) || (is(cancelled) && !is(committed))) {
      throw Error(ErrorCode::kAborted, "the call was aborted");
    }
  }
};

}  // namespace rapo
