// The kernels addon: typed arrays in and out. lib/loss/kernels.ts allocates all of them.
#include <napi.h>

#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#include "arrays.h"
#include "async.h"
#include "cuda.h"
#include "environment.h"
#include "errors.h"
#include "kernels/cpu/select.h"
#include "kernels/cuda/calls.h"
#include "kernels/dtypes.h"
#include "kernels/loss.h"
#include "kernels/parallel.h"
#include "kernels/row_vectors.h"
#include "kernels/validate.h"
#include "objective.h"
#include "pages.h"

namespace rapo::bindings {
namespace {

/// (rows, vocab_size) of any dtype: Float32Array, or Uint16Array for the two half types.
void* matrix(const Napi::Value& value, const char* name, DType dtype, std::int64_t elements) {
  switch (dtype) {
    case DType::kFloat32:
      return view<float>(value, name, elements).data;
    case DType::kFloat64:
      return view<double>(value, name, elements).data;
    default:
      return view<std::uint16_t>(value, name, elements).data;
  }
}

/// The token ids of a BigInt64Array, in 32 bits and as given. Ids beyond 32 bits would otherwise wrap round
/// to valid ids.
struct WideIds {
  std::vector<std::int64_t> given;
  std::vector<std::int32_t> ids;
  Extent extent = {"tokenIds", nullptr, 0};

  const std::int32_t* read(const Napi::Value& value, std::int64_t rows) {
    const auto v = view<std::int64_t>(value, "tokenIds", rows);
    extent.data = v.data;
    extent.bytes = rows * std::int64_t{sizeof(std::int64_t)};
    given.assign(v.data, v.data + v.size);
    for (const auto id : given) ids.push_back(static_cast<std::int32_t>(id));
    return ids.data();
  }

  /// Throws for an id beyond 32 bits in an unmasked row.
  void check(std::int64_t vocab_size, const float* token_weights) const {
    for (std::size_t i = 0; i < given.size(); ++i) {
      if (given[i] == ids[i] || (token_weights && token_weights[i] == 0)) continue;
      invalid("tokenIds[" + std::to_string(i) + "] is " + std::to_string(given[i]) + ", outside [0, " +
              std::to_string(vocab_size) + ")");
    }
  }
};

/// A row array, where it lies. Token ids may also be a BigInt64Array.
template <class T>
const T* row_array(const Napi::Value& value, const char* name, std::int64_t rows, WideIds& wide) {
  if constexpr (std::is_same_v<T, std::int32_t>) {
    if (value.IsTypedArray() && raw_view(value, name).type == napi_bigint64_array)
      return wide.read(value, rows);
  }
  return view<T>(value, name, rows).data;
}

std::int64_t shape_product(std::int64_t rows, std::int64_t vocab_size) {
  constexpr std::int64_t kMost = std::int64_t{1} << 53;
  if (rows < 0) invalid("rows is " + std::to_string(rows) + ", expected >= 0");
  if (vocab_size < 1) invalid("vocabSize is " + std::to_string(vocab_size) + ", expected >= 1");
  if (rows > kMost / vocab_size) invalid("rows x vocabSize is beyond 2^53");
  return rows * vocab_size;
}

/// The elements of an array that may be left out.
template <class T>
T* optional(const Napi::Value& value, const char* name, std::int64_t elements) {
  return present(value) ? view<T>(value, name, elements).data : nullptr;
}

/// Every typed array of a call. An asynchronous call keeps them alive.
std::vector<Napi::Object> arrays_of(const Napi::Object& call) {
  std::vector<Napi::Object> arrays;
  const auto names = call.GetPropertyNames();
  for (std::uint32_t i = 0; i < names.Length(); ++i) {
    const Napi::Value value = call.Get(Napi::Value(names[i]));
    if (value.IsTypedArray()) arrays.push_back(value.As<Napi::Object>());
  }
  return arrays;
}

/// A policy_loss call. Logits and outputs are borrowed. The row arrays and the sequences' offsets are copied:
/// JS, or a thread that shares their memory, may write to them after the checks, and a changed id or offset
/// would be used as an index.
struct LossCall {
  Batch batch;
  Objective objective;
  Outputs outputs;
  RowVectors rows;
  std::vector<std::int32_t> offsets;

  LossCall(const LossCall&) = delete;  // the batch points into this object

  /// lib/loss/kernels.ts creates the object, so that no getter of a user runs between these reads.
  explicit LossCall(const Napi::Object& call) {
    objective = objective_from(call.Get("objective"));
    batch.rows = integer(call, "rows");
    batch.vocab_size = integer(call, "vocabSize");
    batch.dtype = dtype_from(string(call, "dtype"), "dtype");
    const auto n = batch.rows, elements = shape_product(n, batch.vocab_size);
    batch.logits = matrix(call.Get("logits"), "logits", batch.dtype, elements);
    const auto ref = call.Get("refLogits");
    if (present(ref)) batch.ref_logits = matrix(ref, "refLogits", batch.dtype, elements);
    batch.logits_stride = batch.ref_stride = batch.vocab_size;
    const auto grad = call.Get("gradLogits");
    if (present(grad)) {
      outputs.grad_dtype = dtype_from(string(call, "gradDtype"), "gradDtype");
      outputs.grad_logits = matrix(grad, "gradLogits", outputs.grad_dtype, elements);
      outputs.grad_stride = batch.vocab_size;
      const auto is_new = call.Get("gradIsNew");
      if (present(is_new) && is_new.ToBoolean()) {
        const auto width = static_cast<std::int64_t>(dtype_size(outputs.grad_dtype));
        request_huge_pages(outputs.grad_logits, static_cast<std::size_t>(elements * width));
      }
    }
#define RAPO_OUTPUT(name, type, js) outputs.name = optional<type>(call.Get(js), js, n);
    RAPO_ROW_OUTPUTS(RAPO_OUTPUT)
#undef RAPO_OUTPUT

    WideIds wide;
#define RAPO_READ(name, type, js, required, ...)                 \
  if (const auto name = call.Get(js); required || present(name)) \
    batch.name = row_array<type>(name, js, n, wide);
    RAPO_ROW_ARRAYS(RAPO_READ)
#undef RAPO_READ
    const auto sequences = call.Get("sequenceOffsets");
    if (present(sequences)) {
      const auto v = view<std::int32_t>(sequences, "sequenceOffsets");
      if (v.size < 1) invalid("sequenceOffsets is empty, expected one entry more than there are sequences");
      batch.sequences = v.size - 1;
      batch.sequence_offsets = v.data;
      offsets.assign(v.data, v.data + v.size);
    }
    // Made while the batch still points at the caller's arrays.
    auto extents = extents_of(batch, outputs);
    extents.push_back(wide.extent);
    check_overlaps(extents);
    rows = RowVectors(batch);
    rows.attach(batch);
    if (batch.sequence_offsets) batch.sequence_offsets = offsets.data();
    wide.check(batch.vocab_size, batch.token_weights);
  }

  /// Runs on the CPU, or on the CUDA device of that number.
  Metrics run(std::optional<int> device, const Control* control) const {
    return device ? cuda::policy_loss_of_host_arrays(*device, batch, objective, outputs, control)
                  : policy_loss(batch, objective, outputs, control);
  }
};

Napi::Object call_argument(const Napi::CallbackInfo& info) {
  if (!info[0].IsObject()) invalid("the argument must be an object");
  return info[0].As<Napi::Object>();
}

/// policyLoss({ objective, ...batch, ...outputs, device? }) -> metrics
Napi::Value policy_loss_sync(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    const auto object = call_argument(info);
    const LossCall call(object);
    return metrics_to_js(info.Env(), call.run(optional_device(object.Get("device")), nullptr));
  });
}

/// policyLossReference of the same object -> metrics. Runs the oracle; accepts float64 too.
Napi::Value policy_loss_reference(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    const LossCall call(call_argument(info));
    return metrics_to_js(info.Env(), reference::policy_loss(call.batch, call.objective, call.outputs));
  });
}

/// policyLossAsync of the same object, with an optional control -> Promise<metrics>
Napi::Value policy_loss_async(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    const auto object = call_argument(info);
    auto call = std::make_shared<LossCall>(object);
    auto control = ControlObject::get(object.Get("control"));
    return PromiseWorker<Metrics>::run(
        info.Env(), control, arrays_of(object),
        [call, control, device = optional_device(object.Get("device"))] {
          return call->run(device, control.get());
        },
        [](Napi::Env env, Metrics& metrics) { return metrics_to_js(env, metrics); });
  });
}

/// A gather_logprobs call. The same arrays are borrowed and copied as in LossCall.
struct GatherCall {
  LogitRows logits;
  const std::int32_t* token_ids = nullptr;
  double temperature = 1;
  GatherOutputs outputs;
  std::vector<std::int32_t> ids;

  GatherCall(const GatherCall&) = delete;

  explicit GatherCall(const Napi::Object& call) {
    const auto n = logits.rows = integer(call, "rows");
    logits.vocab_size = integer(call, "vocabSize");
    logits.dtype = dtype_from(string(call, "dtype"), "dtype");
    logits.data = matrix(call.Get("logits"), "logits", logits.dtype, shape_product(n, logits.vocab_size));
    logits.stride = logits.vocab_size;
    temperature = number(call, "temperature");
    outputs.logprobs = optional<float>(call.Get("logprobs"), "logprobs", n);
    outputs.entropy = optional<float>(call.Get("entropy"), "entropy", n);
    outputs.log_sum_exp = optional<float>(call.Get("logSumExp"), "logSumExp", n);
    WideIds wide;
    const auto given = call.Get("tokenIds");
    if (present(given)) token_ids = row_array<std::int32_t>(given, "tokenIds", n, wide);
    auto extents = extents_of(logits, token_ids, outputs);
    extents.push_back(wide.extent);
    check_overlaps(extents);
    if (token_ids) {
      ids.assign(token_ids, token_ids + n);
      token_ids = ids.data();
    }
    wide.check(logits.vocab_size, nullptr);
  }

  void run(std::optional<int> device, const Control* control) const {
    if (device) {
      cuda::gather_logprobs_of_host_arrays(*device, logits, token_ids, temperature, outputs, control);
    } else {
      gather_logprobs(logits, token_ids, temperature, outputs, control);
    }
  }
};

/// gatherLogprobs({ ...batch, ...outputs, device? }): undefined
Napi::Value gather_sync(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    const auto object = call_argument(info);
    GatherCall(object).run(optional_device(object.Get("device")), nullptr);
    return info.Env().Undefined();
  });
}

Napi::Value gather_reference(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    const GatherCall call(call_argument(info));
    reference::gather_logprobs(call.logits, call.token_ids, call.temperature, call.outputs);
    return info.Env().Undefined();
  });
}

/// gatherLogprobsAsync of the same object, with an optional control -> Promise<undefined>
Napi::Value gather_async(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    const auto object = call_argument(info);
    auto call = std::make_shared<GatherCall>(object);
    auto control = ControlObject::get(object.Get("control"));
    return PromiseWorker<bool>::run(
        info.Env(), control, arrays_of(object),
        [call, control, device = optional_device(object.Get("device"))] {
          call->run(device, control.get());
          return true;
        },
        [](Napi::Env env, bool&) { return env.Undefined(); });
  });
}

Napi::Value isa(const Napi::CallbackInfo& info) {
  return guarded(info, [&] { return Napi::String::New(info.Env(), row_kernels().name); });
}

Napi::Value isas(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    auto names = Napi::Array::New(info.Env());
    for (const auto& name : available_isas()) names.Set(names.Length(), name);
    return names;
  });
}

/// setIsa(name): for tests and benchmarks; "" restores the default.
Napi::Value set_isa(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    if (!info[0].IsString()) invalid("isa must be a string");
    select_isa(info[0].As<Napi::String>());
    return info.Env().Undefined();
  });
}

Napi::Value threads(const Napi::CallbackInfo& info) {
  return guarded(info, [&] { return Napi::Number::New(info.Env(), kernel_threads()); });
}

Napi::Value set_threads(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    const double n = info[0].IsNumber() ? info[0].As<Napi::Number>().DoubleValue() : -1;
    if (!(n >= 0 && n <= 1024 && n == std::trunc(n))) invalid("threads must be a whole number in [0, 1024]");
    set_kernel_threads(static_cast<int>(n));
    return info.Env().Undefined();
  });
}

Napi::Value lists(const Napi::CallbackInfo& info) {
  return guarded(info, [&] { return lists_to_js(info.Env()); });
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData<AddonData>(new AddonData);
  exports.Set("setErrorClass", Napi::Function::New<set_error_class>(env));
  exports.Set("setEnvironment", Napi::Function::New<set_environment>(env));
  exports.Set("Control", ControlObject::define(env));
  exports.Set("policyLoss", Napi::Function::New<policy_loss_sync>(env));
  exports.Set("policyLossAsync", Napi::Function::New<policy_loss_async>(env));
  exports.Set("policyLossReference", Napi::Function::New<policy_loss_reference>(env));
  exports.Set("gatherLogprobs", Napi::Function::New<gather_sync>(env));
  exports.Set("gatherLogprobsAsync", Napi::Function::New<gather_async>(env));
  exports.Set("gatherLogprobsReference", Napi::Function::New<gather_reference>(env));
  define_cuda(env, exports);
  exports.Set("lists", Napi::Function::New<lists>(env));
  exports.Set("isa", Napi::Function::New<isa>(env));
  exports.Set("isas", Napi::Function::New<isas>(env));
  exports.Set("setIsa", Napi::Function::New<set_isa>(env));
  exports.Set("threads", Napi::Function::New<threads>(env));
  exports.Set("setThreads", Napi::Function::New<set_threads>(env));
  return exports;
}

}  // namespace

NODE_API_MODULE(rapo_kernels, init)

}  // namespace rapo::bindings
