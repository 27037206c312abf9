// The names of Gloo that torch's ProcessGroupGloo.hpp uses. libtorch contains Gloo, but no wheel ships Gloo's
// headers. These are declarations only: pointers to the types are passed on, their insides are never used.
#pragma once

#include <chrono>

namespace gloo {
class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};
}  // namespace gloo
