// Matrix products on the device. cublaslt.cpp implements them with cuBLASLt, which is found at run time; the
// tests' emulator has its own implementation.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../objective.h"

namespace rapo::cuda {

/// A row-major matrix in the device's memory.
struct Operand {
  const void* data;
  DType dtype;  // kFloat32 or kBFloat16
  std::int64_t rows, columns, stride;
  bool transposed = false;  // the product uses the transposed matrix
};

struct Product {
  void* data;
  DType dtype;
  std::int64_t stride;
  bool accumulate;  // add to what is there
};

/// Error numbers in addition to those of cudaError_t, which are positive. A failed product gives kGemmFailed
/// minus its status.
constexpr int kGemmMissing = -1, kGemmFailed = -1000;
/// The text for one of these errors: the current thread's last error of that number.
const char* gemm_error_text(int error);

/// Bytes of the workspace that gemm may use.
constexpr std::size_t kGemmWorkspace = std::size_t{32} << 20;

/// Loads the library and creates its state for the device, which must be current. Further calls do nothing.
int gemm_prepare(int device);

/// c = a b (+ c) with float32 sums on the current device, for which gemm_prepare() was called. The call only
/// enqueues. It gives the same bits every time: a sum may be split over blocks only if the parts are added up
/// in a fixed order. The workspace is aligned to 256 bytes; `stream` is a cudaStream_t.
int gemm(int device, const Operand& a, const Operand& b, const Product& c, void* workspace, void* stream);

}  // namespace rapo::cuda
