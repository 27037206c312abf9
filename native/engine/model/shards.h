// How a flat buffer of parameters is shared out to the ranks of a world (ZeRO, arXiv 1910.02054).
#pragma once

#include <cstdint>
#include <vector>

#include "model/layout.h"

namespace rapo {

/// The flat buffer is cut into pieces, none of which crosses the border of a section of the layout. Of each
/// piece every rank owns one slice; all slices of a piece have the same size, of which the last ranks may own
/// a part or nothing. A rank's slices, end to end, are its shard.
class Shards {
 public:
  struct Piece {
    std::int64_t section;  // of the layout
    std::int64_t begin;    // in the flat buffer
    std::int64_t size;     // of the piece
    std::int64_t slice;    // elements of a rank's slice: size <= ranks * slice
    std::int64_t shard;    // where the slice begins in the shard
  };

  /// most: elements of a piece.
  Shards(const Layout& layout, std::int64_t rank, std::int64_t ranks, std::int64_t most);

  /// Elements of a piece, which is one exchange: Gloo's time for a byte is least for tensors of this size;
  /// NCCL wants larger ones.
  static std::int64_t piece_elements(bool on_cpu);

  std::int64_t ranks() const { return ranks_; }
  const std::vector<Piece>& pieces() const { return pieces_; }
  std::int64_t shard_size() const { return shard_size_; }
  /// Where the own slice begins in the flat buffer, and how much of it is owned.
  std::int64_t own_begin(const Piece& piece) const { return piece.begin + rank_ * piece.slice; }
  std::int64_t own_size(const Piece& piece) const;
  /// Elements that a buffer for one section needs, so that every piece of it has ranks * slice elements.
  std::int64_t section_buffer(std::int64_t section) const;

 private:
  std::int64_t rank_, ranks_;
  std::vector<Layout::Section> sections_;
  std::vector<Piece> pieces_;
  std::int64_t shard_size_ = 0;
};

}  // namespace rapo
