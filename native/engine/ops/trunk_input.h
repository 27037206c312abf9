// What the trunk is given: tokens end to end, and which of them attend to which.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "types.h"

namespace rapo {

/// Sequences that begin with the same tokens: the prefix is there once, then each sequence's branch. A
/// branch's tokens attend to the prefix and to the branch. A sequence by itself is a prefix without branches.
struct Family {
  std::int64_t begin = 0;  // its first token's row
  std::vector<std::int64_t>
      lengths;  // of the prefix, then of each branch (0 where the prefix is the whole sequence)
};

namespace ops {
struct AtenInput;
}

struct TrunkInput {
  std::vector<std::int32_t> token_ids;                 // (R)
  std::vector<Family> families;                        // in the order of their tokens
  std::int64_t longest = 0;                            // positions of the longest sequence
  mutable std::shared_ptr<const ops::AtenInput> aten;  // made of the above when ops_aten first needs it

  /// Appends one family: prefix, then branches.
  void add(const std::int32_t* prefix, std::int64_t length);
  void add_branch(const std::int32_t* tokens, std::int64_t length);
};

/// Sequences [first, end), each by itself.
TrunkInput plain_input(const PackedTokens& sequences, std::size_t first, std::size_t end);

}  // namespace rapo
