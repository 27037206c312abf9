#include "ops/trunk_input.h"

#include <algorithm>

namespace rapo {

void TrunkInput::add(const std::int32_t* prefix, std::int64_t length) {
  families.push_back({static_cast<std::int64_t>(token_ids.size()), {length}});
  token_ids.insert(token_ids.end(), prefix, prefix + length);
  longest = std::max(longest, length);
}

void TrunkInput::add_branch(const std::int32_t* tokens, std::int64_t length) {
  Family& family = families.back();
  family.lengths.push_back(length);
  token_ids.insert(token_ids.end(), tokens, tokens + length);
  longest = std::max(longest, family.lengths[0] + length);
}

TrunkInput plain_input(const PackedTokens& sequences, std::size_t first, std::size_t end) {
  TrunkInput input;
  for (std::size_t b = first; b < end; ++b) {
    input.add(sequences.token_ids.data() + sequences.offsets[b],
              sequences.offsets[b + 1] - sequences.offsets[b]);
  }
  return input;
}

}  // namespace rapo
