// CUDA calls that ATen's operations do not cover. open.cpp is always compiled; device.cpp is compiled if
// libtorch has CUDA, and device_none.cpp otherwise.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "ops/aten.h"

namespace rapo::device {

/// Whether the libtorch that the engine was compiled against has CUDA.
bool has_cuda();

/// The device of that name: "cpu", "cuda" or "cuda:1". Throws kInvalidArgument for another name; kDevice if
/// libtorch has no CUDA, if the machine has no such device, or if the kernels' CUDA library is missing.
at::Device open(const std::string& name);

/// Number of CUDA devices that libtorch can use. If there is none, `reason` says why.
int count_devices(std::string& reason);
/// Makes the device current in this thread, on a stream of its own: the default stream cannot be captured in
/// a graph.
void enter(int index);

/// Bytes of the device's memory that can still be allocated, including the memory that libtorch's allocator
/// has reserved.
std::int64_t free_bytes(at::Device device);

/// The cudaStream_t that libtorch enqueues on in this thread; null on the CPU.
void* stream(at::Device device);
/// Waits for what this thread has enqueued there.
void synchronize(at::Device device);

/// CUDA graphs of a step, by key. Everything that the step reads and writes, except for its temporaries, must
/// stay at its address during the lifetime of this object, and the step must not wait for the device.
class Graphs {
 public:
  explicit Graphs(at::Device device);
  ~Graphs();
  /// Runs the step. The first call with a key calls step(), the second captures step() as a graph and
  /// launches the graph, and later calls launch the same graph. Without CUDA, or if RAPO_CUDA_GRAPHS is 0,
  /// every call calls step().
  void run(std::int64_t key, const std::function<void()>& step);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace rapo::device
