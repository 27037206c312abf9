// The input of the trunk: tokens laid end to end, and the relation of which token attends to which.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "types.h"

namespace rapo {

/// Sequences that begin with the same tokens. The shared prefix is stored once, followed by the rest of each
/// sequence, its branch. The tokens of a branch attend to the prefix and to the branch. A single sequence is
/// a prefix without branches.
struct Family {
  std::int64_t begin = 0;  // row of its first token
  std::vector<std::int64_t>
      lengths;  // of the prefix, then of each branch (0 if the prefix is the whole sequence)
};

namespace ops {
struct AtenInput;
}

struct TrunkInput {
  std::vector<std::int32_t> token_ids;                 // (R)
  std::vector<Family> families;                        // in the order of their tokens
  std::int64_t longest = 0;                            // positions of the longest sequence
  mutable std::shared_ptr<const ops::AtenInput> aten;  // made by ops/aten when it is first needed

  /// Appends a family: first its prefix, then its branches.
  void add(const std::int32_t* prefix, std::int64_t length);
  void add_branch(const std::int32_t* tokens, std::int64_t length);
};

/// Sequences [first, end), each as a family without branches.
TrunkInput plain_input(const PackedTokens& sequences, std::size_t first, std::size_t end);

}  // namespace rapo
