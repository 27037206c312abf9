// The kernels addon's functions for CUDA: device memory, and calls whose arrays are on a device. Addresses
// and streams are BigInts; lib/loss/cuda.ts keeps the memory alive that they point to.
#pragma once

#include <napi.h>

#include <memory>
#include <optional>
#include <string>

#include "arrays.h"
#include "async.h"
#include "cuda_library.h"
#include "errors.h"
#include "kernels/cuda/calls.h"
#include "kernels/cuda/open.h"
#include "objective.h"

namespace rapo::bindings {

/// The number of a CUDA device; no value for the CPU.
inline std::optional<int> optional_device(const Napi::Value& value) {
  if (!present(value)) return std::nullopt;
  const double number = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : -1;
  if (!(number >= 0 && number <= 1024 && number == std::trunc(number))) {
    invalid("device must be the number of a CUDA device");
  }
  return static_cast<int>(number);
}

inline int device_argument(const Napi::Value& value) {
  const auto device = optional_device(value);
  if (!device) invalid("device is missing");
  return *device;
}

inline void* address(const Napi::Value& value, const std::string& name) {
  if (!value.IsBigInt()) invalid(name + " must be a BigInt");
  bool lossless = false;
  const std::uint64_t bits = value.As<Napi::BigInt>().Uint64Value(&lossless);
  if (!lossless) invalid(name + " is no address");
  return reinterpret_cast<void*>(bits);  // NOLINT(performance-no-int-to-ptr)
}

/// 0 (null) if the value is left out.
template <class T>
T* optional_address(const Napi::Object& object, const char* name) {
  const auto value = object.Get(name);
  return present(value) ? static_cast<T*>(address(value, name)) : nullptr;
}

/// new DeviceMemory(device, bytes): memory on a CUDA device. dispose() frees it, or the garbage collector.
class DeviceMemory : public Napi::ObjectWrap<DeviceMemory> {
 public:
  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "DeviceMemory",
                       {InstanceMethod<&DeviceMemory::dispose>("dispose"),
                        InstanceAccessor<&DeviceMemory::address>("address")});
  }

  explicit DeviceMemory(const Napi::CallbackInfo& info) : Napi::ObjectWrap<DeviceMemory>(info) {
    guarded(info, [&] {
      device_ = device_argument(info[0]);
      const double bytes = info[1].IsNumber() ? info[1].As<Napi::Number>().DoubleValue() : -1;
      if (!(bytes >= 0 && bytes <= 9007199254740991.0)) invalid("bytes must be a number >= 0");
      functions_ = &cuda::functions_for(device_);
      // At least one word, so that every array has an address.
      const auto size = static_cast<std::size_t>(bytes < 16 ? 16 : bytes);
      cuda::check(*functions_, functions_->allocate(device_, size, &pointer_),
                  ("allocating " + std::to_string(size) + " bytes on the device").c_str());
      bytes_ = static_cast<std::int64_t>(size);
      Napi::MemoryManagement::AdjustExternalMemory(info.Env(), bytes_);
      return info.Env().Undefined();
    });
  }

  void Finalize(Napi::Env env) override { release(env); }

 private:
  Napi::Value dispose(const Napi::CallbackInfo& info) {
    release(info.Env());
    return info.Env().Undefined();
  }
  Napi::Value address(const Napi::CallbackInfo& info) {
    return Napi::BigInt::New(info.Env(),
                             static_cast<std::uint64_t>(reinterpret_cast<std::uintptr_t>(pointer_)));
  }
  void release(Napi::Env env) {
    if (!pointer_) return;
    functions_->release(device_, pointer_);
    pointer_ = nullptr;
    Napi::MemoryManagement::AdjustExternalMemory(env, -bytes_);
  }

  const cuda::Functions* functions_ = nullptr;
  int device_ = 0;
  void* pointer_ = nullptr;
  std::int64_t bytes_ = 0;
};

/// cudaInfo() -> { available, lacks, reason, searched, devices }
inline Napi::Value cuda_info(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    const auto env = info.Env();
    const auto& found = cuda::availability();
    auto devices = Napi::Array::New(env);
    for (const auto& device : found.devices) {
      auto object = Napi::Object::New(env);
      object.Set("name", device.name);
      object.Set("capability", std::to_string(device.major) + "." + std::to_string(device.minor));
      object.Set("multiprocessors", device.multiprocessors);
      object.Set("memory", static_cast<double>(device.memory));
      devices.Set(devices.Length(), object);
    }
    auto searched = Napi::Array::New(env);
    for (const auto& [library, problem] : found.searched) {
      auto object = Napi::Object::New(env);
      object.Set("library", library);
      if (!problem.empty()) object.Set("problem", problem);
      searched.Set(searched.Length(), object);
    }
    auto result = Napi::Object::New(env);
    result.Set("available", found.functions != nullptr);
    result.Set("lacks", found.lacks);
    result.Set("reason", found.reason);
    result.Set("searched", searched);
    result.Set("devices", devices);
    return result;
  });
}

/// cudaMemory(device) -> { free, total } in bytes
inline Napi::Value cuda_memory(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    const int device = device_argument(info[0]);
    const auto& functions = cuda::functions_for(device);
    std::size_t free = 0, total = 0;
    cuda::check(functions, functions.memory_info(device, &free, &total), "asking for the device's memory");
    auto result = Napi::Object::New(info.Env());
    result.Set("free", static_cast<double>(free));
    result.Set("total", static_cast<double>(total));
    return result;
  });
}

/// deviceUpload(device, address, typedArray, stream) and deviceDownload with the same arguments. Both wait
/// for the copy.
template <bool kUpload>
Napi::Value device_copy(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    const int device = device_argument(info[0]);
    const auto& functions = cuda::functions_for(device);
    void* there = address(info[1], "address");
    const auto array = raw_view(info[2], "array");
    const auto bytes = static_cast<std::size_t>(info[2].As<Napi::TypedArray>().ByteLength());
    void* stream = address(info[3], "stream");
    if (bytes == 0) return info.Env().Undefined();
    if constexpr (kUpload) {
      cuda::check(functions, functions.upload(device, there, array.data, bytes, stream),
                  "copying to the device");
    } else {
      cuda::check(functions, functions.download(device, array.data, there, bytes, stream),
                  "copying from the device");
    }
    return info.Env().Undefined();
  });
}

/// The argument of the calls below: { ...batch, ...outputs, device, stream }, with the objective for a loss.
inline Napi::Object device_call(const Napi::CallbackInfo& info) {
  if (!info[0].IsObject()) invalid("the argument must be an object");
  return info[0].As<Napi::Object>();
}

/// The common part of the two losses on device arrays.
struct DeviceCall {
  Batch batch;
  Objective objective;
  Outputs outputs;
  int device;
  void* stream;

  explicit DeviceCall(const Napi::Object& call)
      : objective(objective_from(call.Get("objective"))),
        device(device_argument(call.Get("device"))),
        stream(address(call.Get("stream"), "stream")) {
    batch.rows = integer(call, "rows");
    batch.vocab_size = integer(call, "vocabSize");
    batch.dtype = dtype_from(string(call, "dtype"), "dtype");
#define RAPO_ADDRESS(name, type, js, ...) batch.name = optional_address<type>(call, js);
    RAPO_ROW_ARRAYS(RAPO_ADDRESS)
#undef RAPO_ADDRESS
    batch.sequence_offsets = optional_address<std::int32_t>(call, "sequenceOffsets");
    if (batch.sequence_offsets) batch.sequences = integer(call, "sequences");
#define RAPO_ADDRESS(name, type, js) outputs.name = optional_address<type>(call, js);
    RAPO_ROW_OUTPUTS(RAPO_ADDRESS)
#undef RAPO_ADDRESS
  }
};

struct DeviceLossCall : DeviceCall {
  explicit DeviceLossCall(const Napi::Object& call) : DeviceCall(call) {
    batch.logits = address(call.Get("logits"), "logits");
    batch.logits_stride = integer(call, "logitsStride");
    batch.ref_logits = optional_address<void>(call, "refLogits");
    batch.ref_stride = batch.ref_logits ? integer(call, "refStride") : batch.vocab_size;
    outputs.grad_logits = optional_address<void>(call, "gradLogits");
    if (outputs.grad_logits) {
      outputs.grad_dtype = dtype_from(string(call, "gradDtype"), "gradDtype");
      outputs.grad_stride = integer(call, "gradStride");
    }
  }

  Metrics run() const {
    return cuda::policy_loss_of_device_arrays(device, stream, batch, objective, outputs);
  }
};

struct FusedHeadCall : DeviceCall {
  cuda::FusedHead head;
  std::int64_t chunk_rows;
  cuda::HeadWorkspace workspace;

  explicit FusedHeadCall(const Napi::Object& call) : DeviceCall(call) {
    head.batch = batch;
    head.channels = integer(call, "channels");
    head.hidden = address(call.Get("hidden"), "hidden");
    head.hidden_stride = integer(call, "hiddenStride");
    head.weight = address(call.Get("weight"), "weight");
    head.weight_stride = integer(call, "weightStride");
    head.ref_hidden = optional_address<void>(call, "refHidden");
    if (head.ref_hidden) {
      head.ref_channels = integer(call, "refChannels");
      head.ref_hidden_stride = integer(call, "refHiddenStride");
      head.ref_weight = address(call.Get("refWeight"), "refWeight");
      head.ref_weight_stride = integer(call, "refWeightStride");
    }
    head.grad_hidden = optional_address<void>(call, "gradHidden");
    if (head.grad_hidden) {
      head.grad_hidden_dtype = dtype_from(string(call, "gradHiddenDtype"), "gradHiddenDtype");
      head.grad_hidden_stride = integer(call, "gradHiddenStride");
    }
    head.grad_weight = optional_address<float>(call, "gradWeight");
    if (head.grad_weight) head.grad_weight_stride = integer(call, "gradWeightStride");
    chunk_rows = integer(call, "chunkRows");
    workspace.data = optional_address<void>(call, "workspace");
    if (workspace.data) workspace.bytes = static_cast<std::size_t>(integer(call, "workspaceBytes"));
  }

  Metrics run() const {
    return cuda::fused_head_loss_of_device_arrays(device, stream, head, objective, outputs, chunk_rows,
                                                  workspace);
  }
};

/// fusedHeadWorkspace(call) -> bytes for the call's chunkRows
inline Napi::Value fused_head_workspace(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    const FusedHeadCall call(device_call(info));
    const auto bytes = cuda::fused_head_workspace_bytes(call.device, call.head, call.chunk_rows);
    return Napi::Number::New(info.Env(), static_cast<double>(bytes));
  });
}

/// policyLossOnDevice(call) and fusedHeadLossOnDevice(call) -> metrics
template <class Call>
Napi::Value device_loss(const Napi::CallbackInfo& info) {
  return guarded(info, [&] { return metrics_to_js(info.Env(), Call(device_call(info)).run()); });
}

/// policyLossOnDeviceAsync(call) and fusedHeadLossOnDeviceAsync(call) -> Promise<metrics>
template <class Call>
Napi::Value device_loss_async(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    auto call = std::make_shared<Call>(device_call(info));
    return PromiseWorker<Metrics>::run(
        info.Env(), std::make_shared<Control>(), {}, [call] { return call->run(); },
        [](Napi::Env env, Metrics& metrics) { return metrics_to_js(env, metrics); });
  });
}

/// gatherLogprobsOnDevice(call): undefined
inline Napi::Value device_gather(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    const auto call = device_call(info);
    LogitRows logits;
    logits.rows = integer(call, "rows");
    logits.vocab_size = integer(call, "vocabSize");
    logits.dtype = dtype_from(string(call, "dtype"), "dtype");
    logits.data = address(call.Get("logits"), "logits");
    logits.stride = integer(call, "logitsStride");
    GatherOutputs outputs;
    outputs.logprobs = optional_address<float>(call, "logprobs");
    outputs.entropy = optional_address<float>(call, "entropy");
    outputs.log_sum_exp = optional_address<float>(call, "logSumExp");
    cuda::gather_logprobs_of_device_arrays(
        device_argument(call.Get("device")), address(call.Get("stream"), "stream"), logits,
        optional_address<std::int32_t>(call, "tokenIds"), number(call, "temperature"), outputs);
    return info.Env().Undefined();
  });
}

inline void define_cuda(Napi::Env env, Napi::Object exports) {
  exports.Set("DeviceMemory", DeviceMemory::define(env));
  exports.Set("setCudaLibrary", Napi::Function::New<set_cuda_library>(env));
  exports.Set("cudaInfo", Napi::Function::New<cuda_info>(env));
  exports.Set("cudaMemory", Napi::Function::New<cuda_memory>(env));
  exports.Set("deviceUpload", Napi::Function::New<device_copy<true>>(env));
  exports.Set("deviceDownload", Napi::Function::New<device_copy<false>>(env));
  exports.Set("policyLossOnDevice", Napi::Function::New<device_loss<DeviceLossCall>>(env));
  exports.Set("policyLossOnDeviceAsync", Napi::Function::New<device_loss_async<DeviceLossCall>>(env));
  exports.Set("fusedHeadWorkspace", Napi::Function::New<fused_head_workspace>(env));
  exports.Set("fusedHeadLossOnDevice", Napi::Function::New<device_loss<FusedHeadCall>>(env));
  exports.Set("fusedHeadLossOnDeviceAsync", Napi::Function::New<device_loss_async<FusedHeadCall>>(env));
  exports.Set("gatherLogprobsOnDevice", Napi::Function::New<device_gather>(env));
}

}  // namespace rapo::bindings
