// What the engine asks of CUDA beyond ATen's operations. open.cpp is always compiled; device.cpp is compiled
// where libtorch has CUDA, and device_none.cpp elsewhere.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "ops/aten.h"

namespace rapo::device {

/// Whether the libtorch that the engine was compiled against has CUDA.
bool has_cuda();

/// The device that a name means: "cpu", "cuda" or "cuda:1". Throws kInvalidArgument for another name, kDevice
/// where libtorch has no CUDA, the machine no such device, or the objective's kernels no library.
at::Device open(const std::string& name);

/// CUDA devices that libtorch can use; reason says why there is none.
int count_devices(std::string& reason);
/// Makes the device this thread's, with a stream of its own (the default one cannot be captured in a graph).
void enter(int index);

/// Bytes of the device's memory that can still be allocated, including those that libtorch holds in reserve.
std::int64_t free_bytes(at::Device device);

/// The cudaStream_t that libtorch enqueues on in this thread; null on the CPU.
void* stream(at::Device device);

/// CUDA graphs of a step, by key. Everything that the step reads and writes, except for its temporaries, must
/// stay at its address during the lifetime of this object, and the step must not wait for the device.
class Graphs {
 public:
  explicit Graphs(at::Device device);
  ~Graphs();
  /// Runs the step. The first call with a key calls step(), the second captures it as a graph, and all later
  /// ones replay that graph. Without CUDA, and where RAPO_CUDA_GRAPHS is 0, every call calls step().
  void run(std::int64_t key, const std::function<void()>& step);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace rapo::device
