// The few machine-dependent operations of device code. Under nvcc they are instructions. The tests compile
// the same kernels for the host, with the header that RAPO_CUDA_EMULATOR names in place of nvcc.
#pragma once

#ifdef RAPO_CUDA_EMULATOR
#include "emulator.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/dtypes.h"

#define RAPO_DEVICE __device__ __forceinline__

namespace rapo::cuda {

/// The type of pointers to shared memory. The emulator checks every access through it.
template <class T>
using SharedPointer = T*;

/// A pointer into the block's dynamic shared memory, `offset` bytes from its start. offset is a multiple of
/// alignof(T).
template <class T>
RAPO_DEVICE SharedPointer<T> shared_memory(int offset) {
  extern __shared__ __align__(16) unsigned char arena[];
  return reinterpret_cast<T*>(arena + offset);
}

/// 2^x, within 2 ulp. Results below the smallest normal number are 0.
RAPO_DEVICE float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// The larger of the two; NaN if x is NaN.
RAPO_DEVICE float max_keep_nan(float x, float y) {
  float z;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(z) : "f"(x), "f"(y));
  return z;
}

RAPO_DEVICE float half_to_float(std::uint16_t bits) { return __half2float(__ushort_as_half(bits)); }

/// Two numbers, rounded to nearest and packed, the first one in the lower half.
RAPO_DEVICE std::uint32_t to_bfloat16x2(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return *reinterpret_cast<const std::uint32_t*>(&pair);
}
RAPO_DEVICE std::uint32_t to_float16x2(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const std::uint32_t*>(&pair);
}

/// Access to global memory: 16 bytes at an address that is a multiple of 16, or a single element. `_last`
/// marks a cache line that will not be read again soon.
RAPO_DEVICE uint4 load16(const void* p) { return *static_cast<const uint4*>(p); }
RAPO_DEVICE uint4 load16_last(const void* p) { return __ldcs(static_cast<const uint4*>(p)); }
RAPO_DEVICE void store16(void* p, uint4 words) { __stcs(static_cast<uint4*>(p), words); }
template <class T>
RAPO_DEVICE T load1(const T* p) {
  return *p;
}
template <class T>
RAPO_DEVICE void store1(T* p, T value) {
  *p = value;
}

/// Starts a copy of 16 bytes from global to shared memory. Only the thread that copies may read them.
/// async_wait<Pending> waits until at most `Pending` groups of copies are unfinished.
RAPO_DEVICE void async_copy16(SharedPointer<uint4> to, const void* from) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
}
RAPO_DEVICE void async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int Pending>
RAPO_DEVICE void async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
// Before sm_90 a cluster is one block.
RAPO_DEVICE int cluster_rank() { return 0; }
RAPO_DEVICE void cluster_sync() { __syncthreads(); }
template <class T>
RAPO_DEVICE T load_remote(SharedPointer<T> p, int) {
  return *p;
}
#else
/// This block's number in its cluster.
RAPO_DEVICE int cluster_rank() {
  int rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
/// A barrier for all threads of the cluster. What was written to shared memory before the barrier can be read
/// after it.
RAPO_DEVICE void cluster_sync() {
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}
/// Reads the word at the same place in the shared memory of block `rank` of the cluster.
RAPO_DEVICE double load_remote(SharedPointer<double> p, int rank) {
  const auto local = static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
  std::uint32_t remote;
  double value;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(local), "r"(rank));
  asm volatile("ld.shared::cluster.f64 %0, [%1];" : "=d"(value) : "r"(remote) : "memory");
  return value;
}
RAPO_DEVICE float load_remote(SharedPointer<float> p, int rank) {
  const auto local = static_cast<std::uint32_t>(__cvta_generic_to_shared(p));
  std::uint32_t remote;
  float value;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(local), "r"(rank));
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(remote) : "memory");
  return value;
}
#endif

}  // namespace rapo::cuda

#endif
