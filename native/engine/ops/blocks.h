// The allocator of large tensors. A fresh page costs a fault and is filled with zeros, which would take a
// tenth of a training step. Blocks are therefore requested in huge pages where the system has them, and a
// block that is freed during a call is used again by the same call.
#pragma once

namespace rapo {

/// While an object of this class exists, freed blocks are kept for later tensors, up to the largest amount
/// that the call's tensors took at one time. Only one may exist at a time.
class ReuseBlocks {
 public:
  ReuseBlocks();
  ~ReuseBlocks();
  ReuseBlocks(const ReuseBlocks&) = delete;
  ReuseBlocks& operator=(const ReuseBlocks&) = delete;
};

}  // namespace rapo
