// The library's table of functions, with the functions for memory and devices.
#include <cstring>
#include <mutex>

#include "gemm.h"
#include "launch.h"

namespace rapo::cuda {
namespace {

constexpr int kMostDevices = 64;

int device_count(int* count) { return cudaGetDeviceCount(count); }

int device_info_table(int device, DeviceInfo* info) {
  return device_info(device, *info);  // without use_device, which would take memory of every device
}

int memory_info(int device, std::size_t* free, std::size_t* total) {
  RAPO_TRY(use_device(device));
  return cudaMemGetInfo(free, total);
}

int allocate(int device, std::size_t bytes, void** pointer) {
  RAPO_TRY(use_device(device));
  const auto error = cudaMalloc(pointer, bytes);
  if (error == cudaErrorMemoryAllocation)
    cudaGetLastError();  // clears the error, or the next call would report it again
  return error;
}

int release(int device, void* pointer) {
  RAPO_TRY(use_device(device));
  return cudaFree(pointer);
}

int create_stream(int device, void** stream) {
  RAPO_TRY(use_device(device));
  return cudaStreamCreateWithFlags(reinterpret_cast<cudaStream_t*>(stream), cudaStreamNonBlocking);
}

int copy(int device, void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind, void* stream) {
  RAPO_TRY(use_device(device));
  RAPO_TRY(cudaMemcpyAsync(to, from, bytes, kind, static_cast<cudaStream_t>(stream)));
  return cudaStreamSynchronize(static_cast<cudaStream_t>(stream));
}

int upload(int device, void* to, const void* from, std::size_t bytes, void* stream) {
  return copy(device, to, from, bytes, cudaMemcpyHostToDevice, stream);
}

int download(int device, void* to, const void* from, std::size_t bytes, void* stream) {
  return copy(device, to, from, bytes, cudaMemcpyDeviceToHost, stream);
}

const char* error_text(int error) {
  return error < 0 ? gemm_error_text(error) : cudaGetErrorString(static_cast<cudaError_t>(error));
}

int policy_loss_table(int device, const Batch* batch, const Objective* objective, const Outputs* outputs,
                      void* workspace, Report* report, void* stream) {
  RAPO_TRY(use_device(device));
  return policy_loss(device, *batch, *objective, *outputs, workspace, report,
                     static_cast<cudaStream_t>(stream));
}

int gather_table(int device, const LogitRows* logits, const std::int32_t* token_ids, double temperature,
                 const GatherOutputs* outputs, Report* report, void* stream) {
  RAPO_TRY(use_device(device));
  return gather_logprobs(device, *logits, token_ids, temperature, *outputs, report,
                         static_cast<cudaStream_t>(stream));
}

int check_batch_table(int device, const Batch* batch, const Objective* objective, Report* report,
                      void* stream) {
  RAPO_TRY(use_device(device));
  return enqueue_checks(loss_call(*batch, *objective, {}, nullptr, report),
                        static_cast<cudaStream_t>(stream));
}

int fused_head_prepare(int device) {
  RAPO_TRY(use_device(device));
  return gemm_prepare(device);
}

std::size_t fused_head_workspace_table(const FusedHead* head, std::int64_t chunk_rows) {
  return fused_head_workspace(*head, chunk_rows);
}

int fused_head_loss_table(int device, const FusedHead* head, const Objective* objective,
                          const Outputs* outputs, std::int64_t chunk_rows, void* workspace, Report* report,
                          void* stream) {
  RAPO_TRY(use_device(device));
  return fused_head_loss(device, *head, *objective, *outputs, chunk_rows, workspace, report,
                         static_cast<cudaStream_t>(stream));
}

const Functions kFunctions = {
    error_text,
    device_count,
    device_info_table,
    memory_info,
    allocate,
    release,
    create_stream,
    upload,
    download,
    loss_workspace,
    policy_loss_table,
    gather_table,
    check_batch_table,
    fused_head_prepare,
    fused_head_workspace_table,
    fused_head_loss_table,
};

}  // namespace

cudaError_t use_device(int device) { return cudaSetDevice(device); }

cudaError_t device_info(int device, DeviceInfo& info) {
  static std::mutex mutex;
  static DeviceInfo known[kMostDevices];
  if (device < 0 || device >= kMostDevices) return cudaErrorInvalidDevice;
  const std::lock_guard<std::mutex> lock(mutex);
  DeviceInfo& entry = known[device];
  if (entry.multiprocessors == 0) {
    cudaDeviceProp properties;
    RAPO_TRY(cudaGetDeviceProperties(&properties, device));
    static_assert(sizeof entry.name >= sizeof properties.name, "layout");
    std::memcpy(entry.name, properties.name, sizeof properties.name);
    entry.major = properties.major;
    entry.minor = properties.minor;
    entry.memory = static_cast<std::int64_t>(properties.totalGlobalMem);
    entry.l2 = properties.l2CacheSize;
    entry.shared_per_block = static_cast<std::int64_t>(properties.sharedMemPerBlockOptin);
    entry.multiprocessors = properties.multiProcessorCount;
  }
  info = entry;
  return cudaSuccess;
}

}  // namespace rapo::cuda

extern "C" __attribute__((visibility("default"))) const rapo::cuda::Functions* rapo_cuda_functions(int abi) {
  return abi == rapo::cuda::kAbiVersion ? &rapo::cuda::kFunctions : nullptr;
}
