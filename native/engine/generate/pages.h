// The memory of the paged key/value cache. Pages are taken as sequences grow and shared by completions of one
// prompt.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "ops/aten.h"

namespace rapo {

class CachePages {
 public:
  /// elements: elements of one page. chunk_pages: pages that are allocated at once.
  CachePages(std::int64_t elements, std::int64_t chunk_pages, at::TensorOptions options)
      : elements_(elements), chunk_pages_(chunk_pages), options_(options) {}

  /// A page with one owner; its content is undefined.
  void* take() {
    if (free_.empty()) grow();
    const std::size_t page = free_.back();
    free_.pop_back();
    owners_[page] = 1;
    return data(page);
  }
  /// Add or remove one owner of a page. A page without owners is free.
  void share(void* page) { ++owners_[index(page)]; }
  void drop(void* page) {
    const std::size_t i = index(page);
    if (--owners_[i] == 0) free_.push_back(i);
  }

  /// Number of pages that have an owner.
  std::int64_t used() const { return static_cast<std::int64_t>(owners_.size() - free_.size()); }
  std::size_t bytes() const { return static_cast<std::size_t>(elements_) * options_.dtype().itemsize(); }

 private:
  void grow() {
    chunks_.push_back(at::empty({chunk_pages_, elements_}, options_));
    const std::size_t first = owners_.size();
    owners_.resize(first + static_cast<std::size_t>(chunk_pages_));
    for (std::size_t i = owners_.size(); i-- > first;) free_.push_back(i);
  }
  void* data(std::size_t page) const {
    const auto per_chunk = static_cast<std::size_t>(chunk_pages_);
    return static_cast<std::byte*>(chunks_[page / per_chunk].data_ptr()) + page % per_chunk * bytes();
  }
  std::size_t index(const void* page) const {
    const auto* at = static_cast<const std::byte*>(page);
    for (std::size_t c = 0; c < chunks_.size(); ++c) {
      const auto* begin = static_cast<const std::byte*>(chunks_[c].data_ptr());
      if (at >= begin && at < begin + chunks_[c].nbytes()) {
        return c * static_cast<std::size_t>(chunk_pages_) + static_cast<std::size_t>(at - begin) / bytes();
      }
    }
    return owners_.size();  // not a page of this cache; no caller passes one
  }

  std::int64_t elements_, chunk_pages_;
  at::TensorOptions options_;
  std::vector<at::Tensor> chunks_;
  std::vector<std::int64_t> owners_;  // owners of each page
  std::vector<std::size_t> free_;
};

}  // namespace rapo
