// Matrix products on the device: cuBLASLt's (cublaslt.cpp), found at run time. The tests' emulator brings its
// own.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../objective.h"

namespace rapo::cuda {

/// A row-major matrix as it lies in memory.
struct Operand {
  const void* data;
  DType dtype;  // kFloat32 or kBFloat16
  std::int64_t rows, columns, stride;
  bool transposed = false;  // used as its transpose
};

struct Product {
  void* data;
  DType dtype;
  std::int64_t stride;
  bool accumulate;  // added to what is there
};

/// Errors beyond cudaError_t, which are positive. The product itself may also give kGemmFailed - its status.
constexpr int kGemmMissing = -1, kGemmFailed = -1000;
/// What they mean, for the current thread's last such error.
const char* gemm_error_text(int error);

/// Workspace that gemm may use, in bytes.
constexpr std::size_t kGemmWorkspace = std::size_t{32} << 20;

/// Loads the library and makes its state for the device, which is the current one. Does nothing the second
/// time.
int gemm_prepare(int device);

/// c = a b (+ c) on the current device, which has been prepared, with float32 sums. Enqueues only, and gives
/// the same bits every time: of the ways to split a sum over blocks, only the one that adds up the parts in a
/// fixed order is used. The workspace is aligned to 256; `stream` is a cudaStream_t.
int gemm(int device, const Operand& a, const Operand& b, const Product& c, void* workspace, void* stream);

}  // namespace rapo::cuda
