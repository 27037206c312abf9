// The kernels addon: typed arrays in, typed arrays out; lib/loss/kernels.ts allocates them all.
#include <napi.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "arrays.h"
#include "async.h"
#include "cuda.h"
#include "errors.h"
#include "kernels/cpu/select.h"
#include "kernels/cuda/calls.h"
#include "kernels/loss.h"
#include "kernels/parallel.h"
#include "objective.h"

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

/// Int32Array is borrowed; BigInt64Array is copied into `copy`.
const std::int32_t* token_ids(const Napi::Value& value, std::int64_t rows, std::vector<std::int32_t>& copy) {
  if (!value.IsTypedArray() || raw_view(value, "tokenIds").type != napi_bigint64_array) {
    return view<std::int32_t>(value, "tokenIds", rows).data;
  }
  const auto ids = view<std::int64_t>(value, "tokenIds", rows);
  copy.reserve(static_cast<std::size_t>(rows));
  for (std::int64_t i = 0; i < rows; ++i) {
    // Ids beyond 32 bits would wrap round to valid ones; -1 is refused like any other negative id, where it
    // matters.
    const bool fits = ids.data[i] >= 0 && ids.data[i] <= INT32_MAX;
    copy.push_back(fits ? static_cast<std::int32_t>(ids.data[i]) : -1);
  }
  return copy.data();
}

template <class T>
T* optional(const Fields& object, const char* name, std::int64_t elements) {
  const auto value = object.Get(name);
  return present(value) ? view<T>(value, name, elements).data : nullptr;
}

std::int64_t shape_product(std::int64_t rows, std::int64_t vocab_size) {
  constexpr std::int64_t kMost = std::int64_t{1} << 53;
  if (rows < 0) invalid("rows is " + std::to_string(rows) + ", expected >= 0");
  if (vocab_size < 1) invalid("vocabSize is " + std::to_string(vocab_size) + ", expected >= 1");
  if (rows > kMost / vocab_size) invalid("rows x vocabSize is beyond 2^53");
  return rows * vocab_size;
}

Fields object_argument(const Napi::CallbackInfo& info, std::size_t index, const char* name) {
  if (!info[index].IsObject()) invalid(std::string(name) + " must be an object");
  return Fields(info[index].As<Napi::Object>());
}

/// Every typed array of a call, so that an asynchronous one keeps them alive.
void keep_arrays(const Napi::Object& object, std::vector<Napi::Object>& kept) {
  const auto names = object.GetPropertyNames();
  for (std::uint32_t i = 0; i < names.Length(); ++i) {
    const Napi::Value value = object.Get(Napi::Value(names[i]));
    if (value.IsTypedArray()) kept.push_back(value.As<Napi::Object>());
  }
}

/// The order of policyLoss's arguments after objective and metrics.
constexpr const char* kLossFields[] = {"rows",       "vocabSize",   "dtype",         "logits",
                                       "refLogits",  "tokenIds",    "tokenWeights",  "advantages",
                                       "refWeights", "oldLogprobs", "policyWeights", "sequenceOffsets",
                                       "gradLogits", "gradDtype",   "logprobs",      "refLogprobs",
                                       "kl",         "entropy",     "ratio",         "clipped",
                                       "device"};

/// A policy_loss call: the structs and what they point into that is not a JS array.
struct LossCall {
  Batch batch;
  Objective objective;
  Outputs outputs;
  std::vector<std::int32_t> ids;

  /// (batch, objective, outputs, ...)
  explicit LossCall(const Napi::CallbackInfo& info)
      : LossCall(object_argument(info, 0, "batch"), info[1], object_argument(info, 2, "outputs")) {}

  LossCall(const Fields& b, const Napi::Value& wanted, const Fields& o) {
    objective = objective_from(wanted);
    batch.rows = integer(b, "rows");
    batch.vocab_size = integer(b, "vocabSize");
    batch.dtype = dtype_from(string(b, "dtype"), "dtype");
    const auto rows = batch.rows, elements = shape_product(rows, batch.vocab_size);
    batch.logits = matrix(b.Get("logits"), "logits", batch.dtype, elements);
    const auto ref = b.Get("refLogits");
    if (present(ref)) batch.ref_logits = matrix(ref, "refLogits", batch.dtype, elements);
    batch.logits_stride = batch.ref_stride = batch.vocab_size;
    batch.token_ids = token_ids(b.Get("tokenIds"), rows, ids);
    batch.token_weights = view<float>(b.Get("tokenWeights"), "tokenWeights", rows).data;
    batch.advantages = view<float>(b.Get("advantages"), "advantages", rows).data;
    batch.ref_weights = optional<float>(b, "refWeights", rows);
    batch.old_logprobs = optional<float>(b, "oldLogprobs", rows);
    batch.policy_weights = optional<float>(b, "policyWeights", rows);
    const auto offsets = b.Get("sequenceOffsets");
    if (present(offsets)) {
      const auto v = view<std::int32_t>(offsets, "sequenceOffsets");
      if (v.size < 1) invalid("sequenceOffsets is empty, expected one entry more than there are sequences");
      batch.sequences = v.size - 1;
      batch.sequence_offsets = v.data;
    }
    const auto grad = o.Get("gradLogits");
    if (present(grad)) {
      outputs.grad_dtype = dtype_from(string(o, "gradDtype"), "gradDtype");
      outputs.grad_logits = matrix(grad, "gradLogits", outputs.grad_dtype, elements);
      outputs.grad_stride = batch.vocab_size;
    }
    outputs.logprobs = optional<float>(o, "logprobs", rows);
    outputs.ref_logprobs = optional<float>(o, "refLogprobs", rows);
    outputs.kl = optional<float>(o, "kl", rows);
    outputs.entropy = optional<float>(o, "entropy", rows);
    outputs.ratio = optional<float>(o, "ratio", rows);
    outputs.clipped = optional<std::uint8_t>(o, "clipped", rows);
  }
};

/// On the CPU, or on the CUDA device of that number.
Metrics run(const LossCall& call, std::optional<int> device, const Control* control) {
  return device ? cuda::policy_loss_of_host_arrays(*device, call.batch, call.objective, call.outputs, control)
                : policy_loss(call.batch, call.objective, call.outputs, control);
}

/// policyLoss(objective, metrics, ...kLossFields): writes metrics, a Float64Array
Napi::Value policy_loss_sync(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    const Fields fields(info, 2, kLossFields);
    const LossCall call(fields, info[0], fields);
    write_metrics(run(call, optional_device(fields.Get("device")), nullptr), info[1]);
    return info.Env().Undefined();
  });
}

/// makeObjective(objective) -> what the functions here take in its place
Napi::Value make_objective(const Napi::CallbackInfo& info) {
  return guarded(info, [&] { return objective_to_js(info.Env(), objective_from(info[0])); });
}

/// policyLossReference(batch, objective, outputs) -> metrics, by the oracle; takes float64 too.
Napi::Value policy_loss_reference(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    const LossCall call(info);
    return metrics_to_js(info.Env(), reference::policy_loss(call.batch, call.objective, call.outputs));
  });
}

/// policyLossAsync(batch, objective, outputs, control, device?) -> Promise<metrics>
Napi::Value policy_loss_async(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    auto call = std::make_shared<LossCall>(info);
    auto control = ControlObject::get(info[3]);
    std::vector<Napi::Object> kept;
    keep_arrays(info[0].As<Napi::Object>(), kept);
    keep_arrays(info[2].As<Napi::Object>(), kept);
    return PromiseWorker<Metrics>::run(
        info.Env(), control, kept,
        [call, control, device = optional_device(info[4])] { return run(*call, device, control.get()); },
        [](Napi::Env env, Metrics& metrics) { return metrics_to_js(env, metrics); });
  });
}

struct GatherCall {
  LogitRows logits;
  const std::int32_t* token_ids = nullptr;
  double temperature = 1;
  GatherOutputs outputs;
  std::vector<std::int32_t> ids;

  explicit GatherCall(const Napi::CallbackInfo& info) {
    const auto b = object_argument(info, 0, "batch");
    const auto o = object_argument(info, 1, "outputs");
    logits.rows = integer(b, "rows");
    logits.vocab_size = integer(b, "vocabSize");
    logits.dtype = dtype_from(string(b, "dtype"), "dtype");
    logits.data =
        matrix(b.Get("logits"), "logits", logits.dtype, shape_product(logits.rows, logits.vocab_size));
    logits.stride = logits.vocab_size;
    temperature = number(b, "temperature");
    const auto wanted = b.Get("tokenIds");
    if (present(wanted)) token_ids = bindings::token_ids(wanted, logits.rows, ids);
    outputs.logprobs = optional<float>(o, "logprobs", logits.rows);
    outputs.entropy = optional<float>(o, "entropy", logits.rows);
    outputs.log_sum_exp = optional<float>(o, "logSumExp", logits.rows);
  }
};

void run(const GatherCall& call, std::optional<int> device, const Control* control) {
  if (device) {
    cuda::gather_logprobs_of_host_arrays(*device, call.logits, call.token_ids, call.temperature, call.outputs,
                                         control);
  } else {
    gather_logprobs(call.logits, call.token_ids, call.temperature, call.outputs, control);
  }
}

/// gatherLogprobs(batch, outputs, device?): undefined
Napi::Value gather_sync(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    run(GatherCall(info), optional_device(info[2]), nullptr);
    return info.Env().Undefined();
  });
}

Napi::Value gather_reference(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    const GatherCall call(info);
    reference::gather_logprobs(call.logits, call.token_ids, call.temperature, call.outputs);
    return info.Env().Undefined();
  });
}

/// gatherLogprobsAsync(batch, outputs, control, device?) -> Promise<undefined>
Napi::Value gather_async(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    auto call = std::make_shared<GatherCall>(info);
    auto control = ControlObject::get(info[2]);
    std::vector<Napi::Object> kept;
    keep_arrays(info[0].As<Napi::Object>(), kept);
    keep_arrays(info[1].As<Napi::Object>(), kept);
    return PromiseWorker<bool>::run(
        info.Env(), control, kept,
        [call, control, device = optional_device(info[3])] {
          run(*call, device, control.get());
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

Napi::Object init(Napi::Env env, Napi::Object exports) {
  env.SetInstanceData<AddonData>(new AddonData);
  exports.Set("setErrorClass", Napi::Function::New<set_error_class>(env));
  exports.Set("Control", ControlObject::define(env));
  exports.Set("makeObjective", Napi::Function::New<make_objective>(env));
  exports.Set("policyLoss", Napi::Function::New<policy_loss_sync>(env));
  exports.Set("policyLossAsync", Napi::Function::New<policy_loss_async>(env));
  exports.Set("policyLossReference", Napi::Function::New<policy_loss_reference>(env));
  exports.Set("gatherLogprobs", Napi::Function::New<gather_sync>(env));
  exports.Set("gatherLogprobsAsync", Napi::Function::New<gather_async>(env));
  exports.Set("gatherLogprobsReference", Napi::Function::New<gather_reference>(env));
  define_cuda(env, exports);
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
