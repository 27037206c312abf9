// Huge pages for memory that nobody has written yet.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace rapo::bindings {

/// Asks the system for huge pages where a large new array will be written: its first touch of a page costs a
/// fault, and 4 KiB pages would make the faults of a gradient take longer than the gradient. Whoever owns the
/// memory goes on owning it, and its content stays. Systems that cannot do this leave the pages as they are.
inline void request_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] std::size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t kPage = std::uintptr_t{2} << 20;
  // Whole huge pages alone, so that no neighbour's memory is touched.
  const auto begin = reinterpret_cast<std::uintptr_t>(data);
  const std::uintptr_t first = (begin + kPage - 1) / kPage * kPage, last = (begin + bytes) / kPage * kPage;
  // NOLINTNEXTLINE(performance-no-int-to-ptr): madvise() takes the address of a whole page.
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace rapo::bindings
