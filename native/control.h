// Shared between a long call and its caller: the caller can cancel the call and read its progress.
#pragma once

#include <atomic>
#include <cstdint>

#include "error.h"

namespace rapo {

struct Control {
  std::atomic<bool> cancelled{false};
  /// The JS environment that made the call is ending: nobody will see the result, or what the call leaves in
  /// memory.
  std::atomic<bool> abandoned{false};
  /// Set once the call has begun to change something that outlives the call. From then on it ignores
  /// `cancelled`, since stopping would leave half of the change.
  std::atomic<bool> committed{false};
  std::atomic<std::int64_t> done{0};   // units finished; each call documents its unit
  std::atomic<std::int64_t> total{0};  // 0 while unknown

  /// Throws Error(kAborted) if the call must stop.
  void check() const {
    const auto is = [](const std::atomic<bool>& flag) { return flag.load(std::memory_order_relaxed); };
    if (is(abandoned) || (is(cancelled) && !is(committed))) {
      throw Error(ErrorCode::kAborted, "the call was aborted");
    }
  }
};

}  // namespace rapo
