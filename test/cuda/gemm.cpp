// gemm.h for the emulator: plain loops in double. Checks that the matrices lie in memory that was allocated.
#include "kernels/cuda/gemm.h"

#include <cstdlib>
#include <cstring>

#include "emulator.h"
#include "kernels/dtypes.h"

namespace rapo::cuda {
namespace {

bool prepared = false;

bool inside(const void* data, DType dtype, std::int64_t rows, std::int64_t columns, std::int64_t stride) {
  const auto elements = static_cast<std::size_t>((rows - 1) * stride + columns);
  return columns <= stride && reinterpret_cast<std::uintptr_t>(data) % dtype_size(dtype) == 0 &&
         emulator::in_allocation(data, elements * dtype_size(dtype));
}

double element(const Operand& m, std::int64_t i, std::int64_t j) {
  return load_scalar(m.data, m.dtype, m.transposed ? j * m.stride + i : i * m.stride + j);
}

cudaError_t multiply(const Operand& a, const Operand& b, const Product& c, void* workspace) {
  const std::int64_t m = a.transposed ? a.columns : a.rows, k = a.transposed ? a.rows : a.columns;
  const std::int64_t n = b.transposed ? b.rows : b.columns;
  if (k != (b.transposed ? b.columns : b.rows)) return emulator::report_failure("gemm: shapes do not fit");
  if (a.dtype != b.dtype) return emulator::report_failure("gemm: the operands' types differ");
  if (!inside(a.data, a.dtype, a.rows, a.columns, a.stride) ||
      !inside(b.data, b.dtype, b.rows, b.columns, b.stride) || !inside(c.data, c.dtype, m, n, c.stride)) {
    return emulator::report_failure("gemm: a matrix outside its allocation");
  }
  if (reinterpret_cast<std::uintptr_t>(workspace) % 256 != 0 ||
      !emulator::in_allocation(workspace, kGemmWorkspace)) {
    return emulator::report_failure("gemm: the workspace is misaligned or too small");
  }
  // Whatever was there is gone.
  std::memset(workspace, 0xff, 4096);
  std::memset(static_cast<char*>(workspace) + kGemmWorkspace - 4096, 0xff, 4096);
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (std::int64_t l = 0; l < k; ++l) sum += element(a, i, l) * element(b, l, j);
      if (c.accumulate) sum += load_scalar(c.data, c.dtype, i * c.stride + j);
      store_scalar(c.data, c.dtype, i * c.stride + j, sum);
    }
  }
  return cudaSuccess;
}

}  // namespace

const char* gemm_error_text(int error) {
  return error == kGemmMissing ? "cuBLASLt is missing, which the fused head needs" : "gemm failed";
}

int gemm_prepare(int) {
  if (std::getenv("RAPO_CUDA_EMULATOR_NO_CUBLASLT")) return kGemmMissing;
  prepared = true;
  return 0;
}

int gemm(int, const Operand& a, const Operand& b, const Product& c, void* workspace, void* stream) {
  if (!prepared) return kGemmFailed;
  return emulator::enqueue(static_cast<cudaStream_t>(stream), [=] { return multiply(a, b, c, workspace); });
}

}  // namespace rapo::cuda
