// The kernels' own thread pool, one per addon. Threads are created at first use and joined when the library
// is unloaded.
#pragma once

#include <cstdint>
#include <functional>

namespace rapo {

/// The number of threads that share the work of a call, the calling thread included. Default: the number of
/// processors.
int kernel_threads();

/// Sets the number, n >= 1; 0 restores the default. Calls in progress keep the old number.
void set_kernel_threads(int n);

/// Calls body(i) once for every i in [0, items), on any of the threads, in no fixed order. Returns when all
/// calls are done. May be called from several threads at once. After an exception no further items are
/// started, and the exception is rethrown.
void parallel_for(std::int64_t items, const std::function<void(std::int64_t)>& body);

}  // namespace rapo
