// The keys and values of sequences of the last call of generate, for the next turn of their conversations.
#pragma once

#include <algorithm>
#include <cstdint>
#include <unordered_map>
#include <utility>
#include <vector>

#include "ops/aten.h"

namespace rapo {

class KeptSequences {
 public:
  struct Sequence {
    std::vector<std::int32_t> tokens;
    at::Tensor data;  // as Cache::save() makes it
  };

  /// Keeps a sequence, unless all of them would then take more than `limit` bytes.
  void add(Sequence&& sequence, std::int64_t limit) {
    const auto bytes = static_cast<std::int64_t>(sequence.data.nbytes());
    if (bytes_ + bytes > limit) return;
    bytes_ += bytes;
    const std::uint64_t key = hash(kSeed, sequence.tokens.data(), sequence.tokens.size());
    sequences_.emplace(key, std::move(sequence));
  }

  /// The longest sequence that is shorter than [tokens, tokens + length) and is its beginning; null if none
  /// is.
  const Sequence* find(const std::int32_t* tokens, std::int64_t length) const {
    const auto found = locate(tokens, length);
    return found == sequences_.end() ? nullptr : &found->second;
  }

  /// Drops the sequence that find() gives.
  void drop(const std::int32_t* tokens, std::int64_t length) {
    const auto found = locate(tokens, length);
    if (found == sequences_.end()) return;
    bytes_ -= static_cast<std::int64_t>(found->second.data.nbytes());
    sequences_.erase(found);
  }

  void clear() {
    sequences_.clear();
    bytes_ = 0;
  }

  std::int64_t bytes() const { return bytes_; }

 private:
  using Map = std::unordered_multimap<std::uint64_t, Sequence>;

  static constexpr std::uint64_t kSeed = 0xcbf29ce484222325;

  /// FNV-1a over tokens; of a sequence that goes on, from the hash of its beginning.
  static std::uint64_t hash(std::uint64_t from, const std::int32_t* tokens, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
      from = (from ^ static_cast<std::uint32_t>(tokens[i])) * 0x100000001b3;
    }
    return from;
  }

  Map::const_iterator locate(const std::int32_t* tokens, std::int64_t length) const {
    auto longest = sequences_.end();
    if (sequences_.empty()) return longest;
    std::uint64_t key = kSeed;
    for (std::int64_t end = 1; end < length; ++end) {
      key = hash(key, tokens + end - 1, 1);
      const auto [begin, stop] = sequences_.equal_range(key);
      for (auto at = begin; at != stop; ++at) {
        const auto& own = at->second.tokens;
        if (static_cast<std::int64_t>(own.size()) == end && std::equal(own.begin(), own.end(), tokens)) {
          longest = at;
          break;
        }
      }
    }
    return longest;
  }

  Map sequences_;
  std::int64_t bytes_ = 0;
};

}  // namespace rapo
