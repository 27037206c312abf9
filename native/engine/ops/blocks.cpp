#include "ops/blocks.h"

#include <c10/core/CPUAllocator.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <mutex>
#include <new>
#include <unordered_map>

namespace rapo {
namespace {

constexpr std::size_t kLeast = std::size_t{1} << 20;  // smaller blocks come from libtorch's own allocator
constexpr std::size_t kPage = std::size_t{2} << 20;   // a huge page

class Blocks : public c10::Allocator {
 public:
  /// Never destroyed, since tensors may outlive everything else when the process exits.
  static Blocks& instance() {
    static auto* blocks = new Blocks;
    return *blocks;
  }

  c10::DataPtr allocate(std::size_t bytes) override {
    void* block = bytes < kLeast ? c10::GetDefaultCPUAllocator()->raw_allocate(bytes)
                                 : take((bytes + kPage - 1) / kPage * kPage);
    return {block, block, &give_back, c10::Device(c10::DeviceType::CPU)};
  }

  /// oneDNN allocates and frees its scratch memory with plain pointers.
  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }

  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }

  void begin() {
    const std::lock_guard<std::mutex> lock(mutex_);
    is_reusing_ = true;
    peak_ = live_;
  }

  void end() {
    const std::lock_guard<std::mutex> lock(mutex_);
    is_reusing_ = false;
    drop(held_);
  }

 private:
  Blocks() { c10::SetCPUAllocator(this); }

  void* take(std::size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    // A block of twice the size or more would waste memory on this tensor.
    const auto fit = free_.lower_bound(bytes);
    if (fit != free_.end() && fit->first < 2 * bytes) {
      const auto [size, block] = *fit;
      free_.erase(fit);
      held_ -= size;
      return own(block, size);
    }
    const std::size_t allowed = std::max(peak_, live_ + bytes);
    if (live_ + held_ + bytes > allowed) drop(live_ + held_ + bytes - allowed);
    void* block = std::aligned_alloc(kPage, bytes);
    if (!block) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    madvise(block, bytes, MADV_HUGEPAGE);
#endif
    return own(block, bytes);
  }

  void* own(void* block, std::size_t bytes) {
    sizes_[block] = bytes;
    live_ += bytes;
    peak_ = std::max(peak_, live_);
    return block;
  }

  static void give_back(void* block) {
    Blocks& all = instance();
    if (reinterpret_cast<std::uintptr_t>(block) % kPage != 0)
      return c10::GetDefaultCPUAllocator()->raw_deallocate(block);
    const std::lock_guard<std::mutex> lock(all.mutex_);
    const auto entry = all.sizes_.find(block);
    if (entry == all.sizes_.end()) return c10::GetDefaultCPUAllocator()->raw_deallocate(block);
    const std::size_t bytes = entry->second;
    all.sizes_.erase(entry);
    all.live_ -= bytes;
    if (!all.is_reusing_) return std::free(block);
    all.free_.emplace(bytes, block);
    all.held_ += bytes;
  }

  /// Frees kept blocks, largest first, until at least so many bytes are freed.
  void drop(std::size_t bytes) {
    for (std::size_t dropped = 0; dropped < bytes && !free_.empty();) {
      const auto largest = std::prev(free_.end());
      dropped += largest->first;
      held_ -= largest->first;
      std::free(largest->second);
      free_.erase(largest);
    }
  }

  std::mutex mutex_;
  std::unordered_map<void*, std::size_t> sizes_;  // of blocks in use
  std::multimap<std::size_t, void*> free_;
  std::size_t live_ = 0, held_ = 0,
              peak_ = 0;  // bytes: in use, kept, and the largest amount in use during this call
  bool is_reusing_ = false;
};

}  // namespace

ReuseBlocks::ReuseBlocks() { Blocks::instance().begin(); }
ReuseBlocks::~ReuseBlocks() { Blocks::instance().end(); }

}  // namespace rapo
