// Runs CUDA kernels on the host, for tests: takes nvcc's and the CUDA runtime's place when
// native/kernels/cuda is compiled with RAPO_CUDA_EMULATOR and this directory comes first among the include
// paths.
//
// Clusters of blocks run one after another; the threads of a cluster are fibres of one host thread, each
// running until it has to wait. What is watched:
// - every access of shared memory: bounds, reads of what nobody wrote, and races, that is two threads at the
// same byte,
//   one of them writing, with no barrier between (a barrier that is missing is found whatever the order of
//   the fibres);
// - vector and element accesses of global memory: that they lie in one allocation, and alignment; allocations
// end at a
//   page that cannot be read, so that other accesses beyond them end the process;
// - barriers and shuffles that not all threads reach, or with different masks;
// - asynchronous copies: they arrive no sooner than at the wait, so that a read without it reads nothing;
// - calls that may not happen while a graph is captured, and work put on another stream meanwhile; what is
// captured is
//   kept with its arguments and runs when the graph is launched.
// What fails makes the launch return cudaErrorLaunchFailure, and cudaGetErrorString tell what it was.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

#include "kernels/dtypes.h"

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __grid_constant__
#define RAPO_DEVICE inline

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  explicit dim3(unsigned x) : x(x) {}
  dim3() = default;
};
struct alignas(16) uint4 {
  std::uint32_t x, y, z, w;
};

// ---- the runtime, as far as it is used ----

enum cudaError_t : int {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorLaunchFailure = 719,
  cudaErrorStreamCaptureUnsupported = 900,
};
struct EmulatedStream;
using cudaStream_t = EmulatedStream*;
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 };
constexpr unsigned cudaStreamNonBlocking = 1;
struct cudaDeviceProp {
  char name[256];
  int major, minor, multiProcessorCount, l2CacheSize;
  std::size_t totalGlobalMem, sharedMemPerBlockOptin, sharedMemPerMultiprocessor;
};
enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension = 4 };
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  union {
    struct {
      unsigned x, y, z;
    } clusterDim;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };

cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total);
cudaError_t cudaMalloc(void** pointer, std::size_t bytes);
cudaError_t cudaFree(void* pointer);
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind, cudaStream_t);
cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t);
cudaError_t cudaStreamSynchronize(cudaStream_t);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t*, unsigned);
cudaError_t cudaStreamDestroy(cudaStream_t);
cudaError_t cudaGetLastError();

struct EmulatedGraph;
using cudaGraph_t = EmulatedGraph*;
using cudaGraphExec_t = EmulatedGraph*;
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal = 0 };
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode);
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t*);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t*, cudaGraph_t, unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t);
const char* cudaGetErrorString(cudaError_t);

// ---- what a thread sees ----

namespace emulator {

struct Thread;
extern Thread* current;

struct Index {
  unsigned x = 0, y = 0, z = 0;
};
const Index& thread_index();
const Index& block_index();
const Index& block_dim();
const Index& grid_dim();

/// Ends the launch with this message; does not return.
[[noreturn]] void fail(const std::string& message);

/// Checks an access of this thread and notes it; `offset` in the block's own shared memory.
void shared_read(int rank, std::int64_t offset, std::int64_t bytes);
void shared_write(std::int64_t offset, std::int64_t bytes);
unsigned char* shared_base(int rank);
int rank();
/// Notes a copy that async_wait will make.
void async_copy(std::int64_t offset, const void* from);
void async_commit();
void async_wait(int pending);

void check_global(const void* p, std::int64_t bytes, const char* what);
void block_barrier(int line);
void cluster_barrier();
/// Every lane of the mask hands in a value and gets that of lane `from`.
std::uint64_t shuffle(unsigned mask, std::uint64_t value, int from);
int lane();

cudaError_t run(const cudaLaunchConfig_t& config, void (*body)(void*), void* argument);

/// Does it, or where the stream is being captured, keeps it for the graph.
cudaError_t enqueue(cudaStream_t stream, std::function<cudaError_t()> work);
/// Whether these bytes lie in one allocation.
bool in_allocation(const void* p, std::size_t bytes);
/// What cudaErrorLaunchFailure means from now on.
cudaError_t report_failure(const std::string& message);

}  // namespace emulator

namespace emulator {
/// threadIdx.x and its kin, asked for when they are read.
struct Coordinate {
  const Index& (*of)();
  operator unsigned() const { return of().x; }
};
struct Coordinates {
  Coordinate x;
};
}  // namespace emulator

inline const emulator::Coordinates threadIdx{{emulator::thread_index}}, blockIdx{{emulator::block_index}},
    blockDim{{emulator::block_dim}}, gridDim{{emulator::grid_dim}};

#define __syncthreads() emulator::block_barrier(__LINE__)

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = emulator::shuffle(mask, bits, emulator::lane() ^ lane_mask);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline unsigned long long atomicMin(unsigned long long* p, unsigned long long value) {
  emulator::check_global(p, sizeof *p, "atomicMin");
  const auto old = *p;
  *p = std::min(old, value);
  return old;
}

using std::fmaf;
using std::fmaxf;

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  std::tuple<std::decay_t<Parameters>...> values{static_cast<Arguments&&>(arguments)...};
  auto kept = *config;
  std::vector<cudaLaunchAttribute> attributes(config->attrs, config->attrs + config->numAttrs);
  return emulator::enqueue(config->stream, [kernel, kept, attributes, values]() mutable {
    kept.attrs = attributes.data();
    std::function<void()> call = [&] { std::apply(kernel, values); };
    return emulator::run(kept, [](void* p) { (*static_cast<std::function<void()>*>(p))(); }, &call);
  });
}

template <class... Parameters>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*)(Parameters...), int,
                                                          std::size_t) {
  *blocks = 2;
  return cudaSuccess;
}
template <class... Parameters>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, void (*)(Parameters...),
                                           const cudaLaunchConfig_t*) {
  *clusters = 2;
  return cudaSuccess;
}
template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*)(Parameters...), cudaFuncAttribute, int) {
  return cudaSuccess;
}

// ---- platform.h's functions ----

namespace rapo::cuda {

/// A place in shared memory, which knows where it is; *p and p[i] are watched when they are read and written.
template <class T>
class SharedPointer {
 public:
  class Reference {
   public:
    Reference(std::int64_t offset) : offset_(offset) {}
    operator T() const {
      emulator::shared_read(emulator::rank(), offset_, sizeof(T));
      T value;
      std::memcpy(&value, emulator::shared_base(emulator::rank()) + offset_, sizeof value);
      return value;
    }
    Reference& operator=(const T& value) {
      emulator::shared_write(offset_, sizeof(T));
      std::memcpy(emulator::shared_base(emulator::rank()) + offset_, &value, sizeof value);
      return *this;
    }
    Reference& operator=(const Reference& other) { return *this = static_cast<T>(other); }
    Reference(const Reference&) = default;

   private:
    std::int64_t offset_;
  };

  explicit SharedPointer(std::int64_t offset) : offset_(offset) {}
  Reference operator*() const { return {offset_}; }
  Reference operator[](std::int64_t i) const { return {offset_ + i * static_cast<std::int64_t>(sizeof(T))}; }
  SharedPointer operator+(std::int64_t i) const {
    return SharedPointer(offset_ + i * static_cast<std::int64_t>(sizeof(T)));
  }
  std::int64_t offset() const { return offset_; }

 private:
  std::int64_t offset_;
};

template <class T>
SharedPointer<T> shared_memory(int offset) {
  static_assert(std::is_trivially_copyable_v<T>);
  if (offset % alignof(T) != 0)
    emulator::fail("shared memory at " + std::to_string(offset) + " is misaligned");
  return SharedPointer<T>(offset);
}

inline float exp2_approx(float x) {
  const float y = std::exp2(x);
  return y < 1.17549435e-38f ? 0 : y;
}
inline float max_keep_nan(float x, float y) { return x < y ? y : x; }
inline float half_to_float(std::uint16_t bits) { return float16_to_float(bits); }
inline std::uint32_t to_bfloat16x2(float low, float high) {
  return float_to_bfloat16(low) | std::uint32_t{float_to_bfloat16(high)} << 16;
}
inline std::uint32_t to_float16x2(float low, float high) {
  return float_to_float16(low) | std::uint32_t{float_to_float16(high)} << 16;
}

inline uint4 load16(const void* p) {
  emulator::check_global(p, 16, "read");
  return *static_cast<const uint4*>(p);
}
inline uint4 load16_last(const void* p) { return load16(p); }
inline void store16(void* p, uint4 words) {
  emulator::check_global(p, 16, "write");
  *static_cast<uint4*>(p) = words;
}
template <class T>
T load1(const T* p) {
  emulator::check_global(p, sizeof(T), "read");
  return *p;
}
template <class T>
void store1(T* p, T value) {
  emulator::check_global(p, sizeof(T), "write");
  *p = value;
}

inline void async_copy16(SharedPointer<uint4> to, const void* from) {
  emulator::check_global(from, 16, "asynchronous read");
  emulator::async_copy(to.offset(), from);
}
inline void async_commit() { emulator::async_commit(); }
template <int Pending>
void async_wait() {
  emulator::async_wait(Pending);
}

inline int cluster_rank() { return emulator::rank(); }
inline void cluster_sync() { emulator::cluster_barrier(); }
template <class T>
T load_remote(SharedPointer<T> p, int rank) {
  emulator::shared_read(rank, p.offset(), sizeof(T));
  T value;
  std::memcpy(&value, emulator::shared_base(rank) + p.offset(), sizeof value);
  return value;
}

}  // namespace rapo::cuda
