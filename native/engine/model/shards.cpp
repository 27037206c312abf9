#include "model/shards.h"

#include <algorithm>

namespace rapo {
namespace {

/// Elements: slices begin where vectors of every instruction set begin, so that the tail of a loop is the
/// tail of a tensor.
constexpr std::int64_t kAlign = 64;

std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

}  // namespace

Shards::Shards(const Layout& layout, std::int64_t rank, std::int64_t ranks, std::int64_t most)
    : rank_(rank), ranks_(ranks), sections_(layout.sections()) {
  const std::int64_t unit = kAlign * ranks, longest = std::max<std::int64_t>(1, most / unit) * unit;
  for (std::size_t s = 0; s < sections_.size(); ++s) {
    const auto& section = sections_[s];
    for (std::int64_t at = 0; at < section.size; at += longest) {
      const std::int64_t size = std::min(longest, section.size - at);
      const std::int64_t slice = divide_up(size, unit) * kAlign;
      pieces_.push_back({static_cast<std::int64_t>(s), section.begin + at, size, slice, shard_size_});
      shard_size_ += slice;
    }
  }
}

std::int64_t Shards::piece_elements(bool on_cpu) { return std::int64_t{1} << (on_cpu ? 20 : 24); }

std::int64_t Shards::own_size(const Piece& piece) const {
  return std::clamp<std::int64_t>(piece.size - rank_ * piece.slice, 0, piece.slice);
}

std::int64_t Shards::section_buffer(std::int64_t section) const {
  std::int64_t size = 0;
  for (const Piece& piece : pieces_) {
    if (piece.section != section) continue;
    const std::int64_t begin = piece.begin - sections_[static_cast<std::size_t>(section)].begin;
    size = std::max(size, begin + ranks_ * piece.slice);
  }
  return size;
}

}  // namespace rapo
