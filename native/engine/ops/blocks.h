// Large tensors' memory. Fresh pages cost a fault and zeros each, a tenth of a training step; so blocks are
// asked for in huge pages where the system has them, and those freed within a call are used again by the same
// call.
#pragma once

namespace rapo {

/// While one exists, freed blocks are kept for the next tensor; never more than the call's tensors took
/// together at their peak. Calls do not nest.
class ReuseBlocks {
 public:
  ReuseBlocks();
  ~ReuseBlocks();
  ReuseBlocks(const ReuseBlocks&) = delete;
  ReuseBlocks& operator=(const ReuseBlocks&) = delete;
};

}  // namespace rapo
