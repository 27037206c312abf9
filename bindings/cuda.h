// The kernels addon's functions for CUDA: memory of a device, and calls whose arrays lie there. Addresses and
// streams are BigInts; lib/loss/cuda.ts keeps the memory that they point into.
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

/// A CUDA device's number; nothing where the value is left out, which means the CPU.
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

/// 0 (null) where it is left out.
template <class T>
T* optional_address(const Napi::Object& object, const char* name) {
  const auto value = object.Get(name);
  return present(value) ? static_cast<T*>(address(value, name)) : nullptr;
}

/// new DeviceMemory(device, bytes): memory on a CUDA device, freed by dispose() or with the object.
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
      // A whole word at least, so that every array has an address.
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

/// deviceUpload(device, address, typedArray, stream) and deviceDownload in the same way; both wait.
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

inline Napi::Object object_at(const Napi::CallbackInfo& info, std::size_t index, const char* name) {
  if (!info[index].IsObject()) invalid(std::string(name) + " must be an object");
  return info[index].As<Napi::Object>();
}

/// The arrays of a batch with one entry a row, and its sizes.
inline Batch device_rows(const Napi::Object& b) {
  Batch batch;
  batch.rows = integer(b, "rows");
  batch.vocab_size = integer(b, "vocabSize");
  batch.dtype = dtype_from(string(b, "dtype"), "dtype");
  batch.token_ids = optional_address<std::int32_t>(b, "tokenIds");
  batch.token_weights = optional_address<float>(b, "tokenWeights");
  batch.advantages = optional_address<float>(b, "advantages");
  batch.ref_weights = optional_address<float>(b, "refWeights");
  batch.old_logprobs = optional_address<float>(b, "oldLogprobs");
  batch.policy_weights = optional_address<float>(b, "policyWeights");
  batch.sequence_offsets = optional_address<std::int32_t>(b, "sequenceOffsets");
  if (batch.sequence_offsets) batch.sequences = integer(b, "sequences");
  return batch;
}

inline Outputs device_outputs(const Napi::Object& o) {
  Outputs outputs;
  outputs.logprobs = optional_address<float>(o, "logprobs");
  outputs.ref_logprobs = optional_address<float>(o, "refLogprobs");
  outputs.kl = optional_address<float>(o, "kl");
  outputs.entropy = optional_address<float>(o, "entropy");
  outputs.ratio = optional_address<float>(o, "ratio");
  outputs.clipped = optional_address<std::uint8_t>(o, "clipped");
  return outputs;
}

/// What the two losses on device arrays have in common: (batch, objective, outputs, device, stream).
struct DeviceCall {
  Batch batch;
  Objective objective;
  Outputs outputs;
  int device;
  void* stream;

  explicit DeviceCall(const Napi::CallbackInfo& info)
      : batch(device_rows(object_at(info, 0, "batch"))),
        objective(objective_from(info[1])),
        outputs(device_outputs(object_at(info, 2, "outputs"))),
        device(device_argument(info[3])),
        stream(address(info[4], "stream")) {}
};

struct DeviceLossCall : DeviceCall {
  explicit DeviceLossCall(const Napi::CallbackInfo& info) : DeviceCall(info) {
    const auto b = object_at(info, 0, "batch"), o = object_at(info, 2, "outputs");
    batch.logits = address(b.Get("logits"), "logits");
    batch.logits_stride = integer(b, "logitsStride");
    batch.ref_logits = optional_address<void>(b, "refLogits");
    batch.ref_stride = batch.ref_logits ? integer(b, "refStride") : batch.vocab_size;
    outputs.grad_logits = optional_address<void>(o, "gradLogits");
    if (outputs.grad_logits) {
      outputs.grad_dtype = dtype_from(string(o, "gradDtype"), "gradDtype");
      outputs.grad_stride = integer(o, "gradStride");
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

  explicit FusedHeadCall(const Napi::CallbackInfo& info) : DeviceCall(info) {
    const auto b = object_at(info, 0, "batch"), o = object_at(info, 2, "outputs");
    head.batch = batch;
    head.channels = integer(b, "channels");
    head.hidden = address(b.Get("hidden"), "hidden");
    head.hidden_stride = integer(b, "hiddenStride");
    head.weight = address(b.Get("weight"), "weight");
    head.weight_stride = integer(b, "weightStride");
    head.ref_hidden = optional_address<void>(b, "refHidden");
    if (head.ref_hidden) {
      head.ref_channels = integer(b, "refChannels");
      head.ref_hidden_stride = integer(b, "refHiddenStride");
      head.ref_weight = address(b.Get("refWeight"), "refWeight");
      head.ref_weight_stride = integer(b, "refWeightStride");
    }
    head.grad_hidden = optional_address<void>(o, "gradHidden");
    if (head.grad_hidden) {
      head.grad_hidden_dtype = dtype_from(string(o, "gradHiddenDtype"), "gradHiddenDtype");
      head.grad_hidden_stride = integer(o, "gradHiddenStride");
    }
    head.grad_weight = optional_address<float>(o, "gradWeight");
    if (head.grad_weight) head.grad_weight_stride = integer(o, "gradWeightStride");
    chunk_rows = integer(o, "chunkRows");
    workspace.data = optional_address<void>(o, "workspace");
    if (workspace.data) workspace.bytes = static_cast<std::size_t>(integer(o, "workspaceBytes"));
  }

  Metrics run() const {
    return cuda::fused_head_loss_of_device_arrays(device, stream, head, objective, outputs, chunk_rows,
                                                  workspace);
  }
};

/// fusedHeadWorkspace(batch, objective, outputs, device, stream) -> bytes for outputs.chunkRows
inline Napi::Value fused_head_workspace(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    const FusedHeadCall call(info);
    const auto bytes = cuda::fused_head_workspace_bytes(call.device, call.head, call.chunk_rows);
    return Napi::Number::New(info.Env(), static_cast<double>(bytes));
  });
}

/// policyLossOnDevice and fusedHeadLossOnDevice(batch, objective, outputs, device, stream) -> metrics
template <class Call>
Napi::Value device_loss(const Napi::CallbackInfo& info) {
  return guarded(info, [&] { return metrics_to_js(info.Env(), Call(info).run()); });
}

/// The same with Async -> Promise<metrics>
template <class Call>
Napi::Value device_loss_async(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    auto call = std::make_shared<Call>(info);
    return PromiseWorker<Metrics>::run(
        info.Env(), std::make_shared<Control>(), {}, [call] { return call->run(); },
        [](Napi::Env env, Metrics& metrics) { return metrics_to_js(env, metrics); });
  });
}

/// gatherLogprobsOnDevice(batch, outputs, device, stream): undefined
inline Napi::Value device_gather(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    const auto b = object_at(info, 0, "batch"), o = object_at(info, 1, "outputs");
    LogitRows logits;
    logits.rows = integer(b, "rows");
    logits.vocab_size = integer(b, "vocabSize");
    logits.dtype = dtype_from(string(b, "dtype"), "dtype");
    logits.data = address(b.Get("logits"), "logits");
    logits.stride = integer(b, "logitsStride");
    GatherOutputs outputs;
    outputs.logprobs = optional_address<float>(o, "logprobs");
    outputs.entropy = optional_address<float>(o, "entropy");
    outputs.log_sum_exp = optional_address<float>(o, "logSumExp");
    cuda::gather_logprobs_of_device_arrays(device_argument(info[2]), address(info[3], "stream"), logits,
                                           optional_address<std::int32_t>(b, "tokenIds"),
                                           number(b, "temperature"), outputs);
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
