// The kernels' own thread pool: one per addon, threads made at first use, joined when the library is
// unloaded.
#pragma once

#include <cstdint>
#include <functional>

namespace rapo {

/// Threads that share a call's work, the calling one included. Default: the machine's.
int kernel_threads();

/// n >= 1 sets the number; 0 restores the default. Calls in progress keep theirs.
void set_kernel_threads(int n);

/// Calls body(i) once for every i in [0, items), on any of the threads, in no set order. Returns when all are
/// done. Safe from several threads at once. An exception stops the handing out of further items and is
/// rethrown.
void parallel_for(std::int64_t items, const std::function<void(std::int64_t)>& body);

}  // namespace rapo
