// gemm.h by cuBLASLt. The library is opened when it is first needed, so that neither building nor loading the
// kernels requires it. The few declarations that are used stand here; they are the same in versions 12 and
// 13.
#include <dlfcn.h>

#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <string>

#include "gemm.h"

#if defined(__has_include)
#if __has_include(<cublasLt.h>)
#include <cublasLt.h>
#define RAPO_CUBLASLT_HEADER
#endif
#endif

namespace rapo::cuda {
namespace {

using Handle = void*;
constexpr int kReal32 = 0, kRealBF16 = 14;       // cudaDataType
constexpr int kCompute32 = 68;                   // CUBLAS_COMPUTE_32F
constexpr int kTransposed = 1;                   // CUBLAS_OP_T
constexpr int kDescTransA = 3, kDescTransB = 4;  // CUBLASLT_MATMUL_DESC_
constexpr int kPrefWorkspace = 1, kPrefReduction = 3,
              kPrefAlignmentOfA = 5;            // CUBLASLT_MATMUL_PREF_; B, C, D follow
constexpr std::uint32_t kReductionInOrder = 2;  // CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE
constexpr int kNotSupported = 15;               // CUBLAS_STATUS_NOT_SUPPORTED

struct Algorithm {
  std::uint64_t data[8];
};
struct Heuristic {
  Algorithm algorithm;
  std::size_t workspace;
  int state;
  float waves;
  int reserved[4];
};

#ifdef RAPO_CUBLASLT_HEADER
static_assert(kReal32 == CUDA_R_32F && kRealBF16 == CUDA_R_16BF && kCompute32 == CUBLAS_COMPUTE_32F &&
                  kTransposed == CUBLAS_OP_T && kDescTransA == CUBLASLT_MATMUL_DESC_TRANSA &&
                  kDescTransB == CUBLASLT_MATMUL_DESC_TRANSB &&
                  kPrefWorkspace == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES &&
                  kPrefReduction == CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK &&
                  kPrefAlignmentOfA == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES &&
                  kPrefAlignmentOfA + 1 == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES &&
                  kPrefAlignmentOfA + 2 == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES &&
                  kPrefAlignmentOfA + 3 == CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES &&
                  kReductionInOrder == CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE &&
                  kNotSupported == CUBLAS_STATUS_NOT_SUPPORTED,
              "cublasLt.h");
static_assert(sizeof(Heuristic) == sizeof(cublasLtMatmulHeuristicResult_t) &&
                  offsetof(Heuristic, workspace) ==
                      offsetof(cublasLtMatmulHeuristicResult_t, workspaceSize) &&
                  offsetof(Heuristic, state) == offsetof(cublasLtMatmulHeuristicResult_t, state),
              "cublasLt.h");
#endif

/// The library's functions. Each returns a cublasStatus_t.
struct Library {
  int (*create)(Handle*) = nullptr;
  int (*desc_create)(void** desc, int compute, int scale_type) = nullptr;
  int (*desc_set)(void* desc, int attribute, const void* value, std::size_t bytes) = nullptr;
  int (*desc_destroy)(void*) = nullptr;
  int (*layout_create)(void** layout, int type, std::uint64_t rows, std::uint64_t columns,
                       std::int64_t leading) = nullptr;
  int (*layout_destroy)(void*) = nullptr;
  int (*preference_create)(void**) = nullptr;
  int (*preference_set)(void* preference, int attribute, const void* value, std::size_t bytes) = nullptr;
  int (*preference_destroy)(void*) = nullptr;
  int (*heuristic)(Handle, void* desc, void* a, void* b, void* c, void* d, void* preference, int wanted,
                   Heuristic* results, int* found) = nullptr;
  int (*matmul)(Handle, void* desc, const void* alpha, const void* a, void* a_layout, const void* b,
                void* b_layout, const void* beta, const void* c, void* c_layout, void* d, void* d_layout,
                const Algorithm*, void* workspace, std::size_t workspace_bytes, void* stream) = nullptr;
  const char* (*status_text)(int) = nullptr;
  std::string problem;  // why the library is missing
};

template <class F>
bool find(void* library, const char* name, F& function) {
  function = reinterpret_cast<F>(dlsym(library, name));
  return function != nullptr;
}

/// Opens the file that RAPO_CUBLASLT names. If the variable is not set, takes a library that the process has
/// loaded already (torch's, for instance) or that the system's search path has, and otherwise the toolkit's.
void* open_library(std::string& problem) {
  const char* named = std::getenv("RAPO_CUBLASLT");
  if (named && *named) {
    void* library = dlopen(named, RTLD_NOW | RTLD_LOCAL);
    if (!library) problem = std::string("cuBLASLt could not be loaded (RAPO_CUBLASLT): ") + dlerror();
    return library;
  }
  for (const char* directory : {"", "/usr/local/cuda/lib64/"}) {
    for (const char* version : {"13", "12"}) {
      const std::string file = std::string(directory) + "libcublasLt.so." + version;
      if (void* library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
    }
  }
  problem =
      "cuBLASLt is missing, which the fused head needs: neither libcublasLt.so.13 nor libcublasLt.so.12 "
      "could be "
      "loaded (it comes with the CUDA toolkit and with torch; RAPO_CUBLASLT names the file)";
  return nullptr;
}

Library load() {
  Library l;
  void* library = open_library(l.problem);
  if (!library) return l;
  const bool whole =
      find(library, "cublasLtCreate", l.create) && find(library, "cublasLtMatmulDescCreate", l.desc_create) &&
      find(library, "cublasLtMatmulDescSetAttribute", l.desc_set) &&
      find(library, "cublasLtMatmulDescDestroy", l.desc_destroy) &&
      find(library, "cublasLtMatrixLayoutCreate", l.layout_create) &&
      find(library, "cublasLtMatrixLayoutDestroy", l.layout_destroy) &&
      find(library, "cublasLtMatmulPreferenceCreate", l.preference_create) &&
      find(library, "cublasLtMatmulPreferenceSetAttribute", l.preference_set) &&
      find(library, "cublasLtMatmulPreferenceDestroy", l.preference_destroy) &&
      find(library, "cublasLtMatmulAlgoGetHeuristic", l.heuristic) &&
      find(library, "cublasLtMatmul", l.matmul) && find(library, "cublasLtGetStatusString", l.status_text);
  if (!whole) l.problem = std::string("cuBLASLt lacks a function: ") + dlerror();
  return l;
}

const Library& library() {
  static const Library found = load();
  return found;
}

constexpr int kMostDevices = 64;
std::mutex handles_mutex;
Handle handles[kMostDevices];  // kept until the process ends

Handle handle_of(int device) {
  const std::lock_guard<std::mutex> lock(handles_mutex);
  return device >= 0 && device < kMostDevices ? handles[device] : nullptr;
}

/// A cuBLASLt descriptor, destroyed at the end of its scope.
class Descriptor {
 public:
  explicit Descriptor(int (*destroy)(void*)) : destroy_(destroy) {}
  Descriptor(const Descriptor&) = delete;
  ~Descriptor() {
    if (data_) destroy_(data_);
  }
  void** out() { return &data_; }
  void* get() const { return data_; }

 private:
  int (*destroy_)(void*);
  void* data_ = nullptr;
};

int type_of(DType dtype) { return dtype == DType::kBFloat16 ? kRealBF16 : kReal32; }

/// The alignment of an address that cuBLASLt may rely on.
std::uint32_t alignment_of(const void* p) {
  const auto address = reinterpret_cast<std::uintptr_t>(p);
  return static_cast<std::uint32_t>(std::min<std::uintptr_t>(256, address & (~address + 1)));
}

#define RAPO_TRY_LT(call)                                   \
  do {                                                      \
    const int rapo_status = (call);                         \
    if (rapo_status != 0) return kGemmFailed - rapo_status; \
  } while (false)

}  // namespace

const char* gemm_error_text(int error) {
  thread_local std::string text;
  const Library& l = library();
  if (error == kGemmMissing || !l.status_text) {
    text = l.problem.empty() ? "cuBLASLt is missing" : l.problem;
  } else {
    text = std::string("cuBLASLt: ") + l.status_text(kGemmFailed - error);
  }
  return text.c_str();
}

int gemm_prepare(int device) {
  const Library& l = library();
  if (!l.problem.empty()) return kGemmMissing;
  const std::lock_guard<std::mutex> lock(handles_mutex);
  if (device < 0 || device >= kMostDevices) return kGemmFailed - kNotSupported;
  if (!handles[device]) RAPO_TRY_LT(l.create(&handles[device]));
  return 0;
}

int gemm(int device, const Operand& a, const Operand& b, const Product& c, void* workspace, void* stream) {
  const Library& l = library();
  if (!l.problem.empty()) return kGemmMissing;
  // cuBLASLt's matrices are column-major, so that it sees the transpose of each matrix and computes c' = b'
  // a'.
  Descriptor desc(l.desc_destroy), first(l.layout_destroy), second(l.layout_destroy), out(l.layout_destroy),
      preference(l.preference_destroy);
  RAPO_TRY_LT(l.desc_create(desc.out(), kCompute32, kReal32));
  if (b.transposed) RAPO_TRY_LT(l.desc_set(desc.get(), kDescTransA, &kTransposed, sizeof kTransposed));
  if (a.transposed) RAPO_TRY_LT(l.desc_set(desc.get(), kDescTransB, &kTransposed, sizeof kTransposed));
  const auto layout = [&](Descriptor& of, DType dtype, std::int64_t rows, std::int64_t columns,
                          std::int64_t stride) {
    return l.layout_create(of.out(), type_of(dtype), static_cast<std::uint64_t>(columns),
                           static_cast<std::uint64_t>(rows), stride);
  };
  RAPO_TRY_LT(layout(first, b.dtype, b.rows, b.columns, b.stride));
  RAPO_TRY_LT(layout(second, a.dtype, a.rows, a.columns, a.stride));
  RAPO_TRY_LT(
      layout(out, c.dtype, a.transposed ? a.columns : a.rows, b.transposed ? b.rows : b.columns, c.stride));

  RAPO_TRY_LT(l.preference_create(preference.out()));
  const auto prefer = [&](int attribute, const auto& value) {
    return l.preference_set(preference.get(), attribute, &value, sizeof value);
  };
  RAPO_TRY_LT(prefer(kPrefWorkspace, kGemmWorkspace));
  RAPO_TRY_LT(prefer(kPrefReduction, kReductionInOrder));
  const void* const addresses[] = {b.data, a.data, c.data, c.data};
  for (int i = 0; i < 4; ++i) RAPO_TRY_LT(prefer(kPrefAlignmentOfA + i, alignment_of(addresses[i])));
  // The heuristic's first algorithm. It depends only on shapes, types, alignments and the device.
  Heuristic chosen = {};
  int found = 0;
  const Handle handle = handle_of(device);
  RAPO_TRY_LT(l.heuristic(handle, desc.get(), first.get(), second.get(), out.get(), out.get(),
                          preference.get(), 1, &chosen, &found));
  if (found == 0) return kGemmFailed - kNotSupported;
  RAPO_TRY_LT(chosen.state);
  const float alpha = 1, beta = c.accumulate ? 1 : 0;
  RAPO_TRY_LT(l.matmul(handle, desc.get(), &alpha, b.data, first.get(), a.data, second.get(), &beta, c.data,
                       out.get(), c.data, out.get(), &chosen.algorithm, workspace, kGemmWorkspace, stream));
  return 0;
}

}  // namespace rapo::cuda
