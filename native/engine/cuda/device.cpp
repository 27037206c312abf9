#include "cuda/device.h"

#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>
#include <limits>
#include <map>

namespace rapo::device {

bool has_cuda() { return true; }

int count_devices(std::string& reason) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaSuccess) return count;
  cudaGetLastError();  // clears the error
  reason = cudaGetErrorString(error);
  return 0;
}

void enter(int index) {
  const auto device = static_cast<c10::DeviceIndex>(index);
  c10::cuda::set_device(device);
  // Only the first time. A policy's next call must run on the same stream, behind the work that is still
  // running.
  if (c10::cuda::getCurrentCUDAStream(device) == c10::cuda::getDefaultCUDAStream(device)) {
    c10::cuda::setCurrentCUDAStream(c10::cuda::getStreamFromPool(false, device));
  }
}

std::int64_t free_bytes(at::Device device) {
  if (!device.is_cuda()) return std::numeric_limits<std::int64_t>::max();
  const c10::cuda::CUDAGuard guard(device);
  std::size_t free = 0, total = 0;
  C10_CUDA_CHECK(cudaMemGetInfo(&free, &total));
  const auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(device.index());
  // Element 0 is the sum over the allocator's pools.
  return static_cast<std::int64_t>(free) + stats.reserved_bytes[0].current - stats.allocated_bytes[0].current;
}

void* stream(at::Device device) {
  return device.is_cuda() ? c10::cuda::getCurrentCUDAStream(device.index()).stream() : nullptr;
}

void synchronize(at::Device device) {
  if (device.is_cuda()) c10::cuda::getCurrentCUDAStream(device.index()).synchronize();
}

struct Graphs::Impl {
  explicit Impl(at::Device where) : device(where) {}

  at::Device device;
  decltype(at::cuda::graph_pool_handle()) pool = at::cuda::graph_pool_handle();
  std::map<std::int64_t, std::unique_ptr<at::cuda::CUDAGraph>>
      graphs;  // null after the first call with a key
};

Graphs::Graphs(at::Device device) {
  const char* wanted = std::getenv("RAPO_CUDA_GRAPHS");
  if (device.is_cuda() && !(wanted && std::strcmp(wanted, "0") == 0)) impl_ = std::make_unique<Impl>(device);
}
Graphs::~Graphs() = default;

void Graphs::run(std::int64_t key, const std::function<void()>& step) {
  if (!impl_) return step();
  // A capture is made on the current device, which the engine's thread may have changed since.
  const c10::cuda::CUDAGuard guard(impl_->device);
  const auto [found, is_new] = impl_->graphs.try_emplace(key);
  if (is_new) return step();  // without a capture: libraries allocate their workspaces here
  auto& graph = found->second;
  if (!graph) {
    auto captured = std::make_unique<at::cuda::CUDAGraph>();
    captured->capture_begin(impl_->pool, cudaStreamCaptureModeThreadLocal);
    try {
      step();
    } catch (...) {
      // The capture must be ended, or the stream stays unusable. The exception of `step` is the one to
      // report.
      try {
        captured->capture_end();
      } catch (...) {  // NOLINT(bugprone-empty-catch)
      }
      throw;
    }
    captured->capture_end();
    graph = std::move(captured);
  }
  graph->replay();
}

}  // namespace rapo::device
