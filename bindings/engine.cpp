// The engine addon. lib/model/engine.ts checks arguments, orders the calls of a policy and disposes of the
// policy. Every call here runs on the engine's thread and returns a promise.
#include <dlfcn.h>
#include <napi.h>

#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "arrays.h"
#include "async.h"
#include "broadcast.h"
#include "cuda_library.h"
#include "engine/model/memory.h"
#include "engine/policy.h"
#include "engine_thread.h"
#include "errors.h"
#include "kernels/dtypes.h"
#include "objective.h"
#include "world.h"

namespace rapo::bindings {
namespace {

constexpr napi_type_tag kPolicyTag = {0x7261706f2d706f6cULL, 0x6963792d76303031ULL};

/// The content of a JS policy handle; empty once disposed.
struct Handle {
  std::shared_ptr<Policy> policy;
  std::int64_t bytes = 0;  // the size that V8 was told
};

Handle& handle_of(const Napi::Value& value) {
  if (!value.IsExternal() || !value.As<Napi::External<Handle>>().CheckTypeTag(&kPolicyTag)) {
    invalid("the first argument must be a policy's handle");
  }
  return *value.As<Napi::External<Handle>>().Data();
}

std::shared_ptr<Policy> policy_of(const Napi::CallbackInfo& info) {
  auto policy = handle_of(info[0]).policy;
  if (!policy) invalid("the policy was disposed");
  return policy;
}

Napi::Object object_from(const Napi::Value& value, const char* name) {
  if (!value.IsObject()) invalid(std::string(name) + " must be an object");
  return value.As<Napi::Object>();
}

std::string string_argument(const Napi::CallbackInfo& info, std::size_t index, const char* name) {
  if (!info[index].IsString()) invalid(std::string(name) + " must be a string");
  return info[index].As<Napi::String>();
}

double number_argument(const Napi::CallbackInfo& info, std::size_t index, const char* name) {
  if (!info[index].IsNumber()) invalid(std::string(name) + " must be a number");
  return info[index].As<Napi::Number>();
}

/// Inputs are copied: a batch is small compared with what is computed from it.
std::vector<std::int64_t> copy_indices(const Napi::Value& value, const char* name) {
  const auto v = view<std::int32_t>(value, name);
  return std::vector<std::int64_t>(v.data, v.data + v.size);
}

PackedTokens packed_from(const Napi::Object& object, const char* name) {
  const std::string prefix(name);
  return {copy<std::int32_t>(object.Get("tokenIds"), prefix + ".tokenIds"),
          copy_indices(object.Get("offsets"), (prefix + ".offsets").c_str())};
}

Napi::Value info_to_js(Napi::Env env, const ModelInfo& info) {
  auto object = Napi::Object::New(env);
  const auto set = [&](const char* name, std::int64_t value) {
    object.Set(name, static_cast<double>(value));
  };
  set("vocabSize", info.vocab_size);
  set("hiddenSize", info.hidden_size);
  set("layers", info.layers);
  set("heads", info.heads);
  set("kvHeads", info.kv_heads);
  set("headDim", info.head_dim);
  set("maxPositionEmbeddings", info.max_position_embeddings);
  set("parameters", info.parameters);
  if (info.adapter_parameters > 0) set("adapterParameters", info.adapter_parameters);
  object.Set("tiedEmbeddings", info.tied_embeddings);
  object.Set("dtype", dtype_name(info.dtype));
  return object;
}

Architecture architecture_from(const std::string& name) {
  std::string known;
#define RAPO_FROM(architecture, model_type)                    \
  if (name == (model_type)) return Architecture::architecture; \
  known += (known.empty() ? "" : ", ") + std::string(model_type);
  RAPO_ARCHITECTURES(RAPO_FROM)
#undef RAPO_FROM
  invalid("architecture is \"" + name + "\", expected one of " + known);
}

/// { dir, config }. lib/model/config.ts has checked the values.
ModelSource source_from(const Napi::Value& value, const char* name) {
  const auto source = object_from(value, name);
  const auto c = object_from(source.Get("config"), "config");
  ModelConfig config;
  config.architecture = architecture_from(string(c, "architecture"));
  config.vocab_size = integer(c, "vocabSize");
  config.hidden_size = integer(c, "hiddenSize");
  config.intermediate_size = integer(c, "intermediateSize");
  config.layers = integer(c, "layers");
  config.heads = integer(c, "heads");
  config.kv_heads = integer(c, "kvHeads");
  config.head_dim = integer(c, "headDim");
  config.max_position_embeddings = integer(c, "maxPositionEmbeddings");
  config.rms_norm_eps = number(c, "rmsNormEps");
  config.rope_theta = number(c, "ropeTheta");
  config.initializer_range = number(c, "initializerRange");
  config.tied_embeddings = boolean(c, "tiedEmbeddings");
  return {string(source, "dir"), config};
}

/// { r, scaling, targetModules, file, seed }. lib/model/adapter.ts has checked the values.
LoraOptions lora_from(const Napi::Object& o) {
  LoraOptions lora;
  lora.r = integer(o, "r");
  lora.scaling = number(o, "scaling");
  const auto names = object_from(o.Get("targetModules"), "targetModules").As<Napi::Array>();
  for (std::uint32_t i = 0; i < names.Length(); ++i)
    lora.target_modules.push_back(names.Get(i).ToString().Utf8Value());
  if (present(o.Get("file"))) lora.file = string(o, "file");
  lora.seed = static_cast<std::uint64_t>(number(o, "seed"));
  return lora;
}

Shard shard_from(const std::string& name) {
  for (const auto& [known, shard] : {std::pair<const char*, Shard>{"none", Shard::kNone},
                                     {"optimizer", Shard::kOptimizer},
                                     {"gradients", Shard::kGradients}}) {
    if (name == known) return shard;
  }
  invalid("shard is \"" + name + "\", expected none, optimizer or gradients");
}

PolicyOptions options_from(const Napi::Object& o) {
  PolicyOptions options;
  options.dtype = dtype_from(string(o, "dtype"), "dtype");
  options.device = string(o, "device");
  if (present(o.Get("backend"))) options.backend = string(o, "backend");
  options.trainable = boolean(o, "trainable");
  if (present(o.Get("reference"))) options.reference = source_from(o.Get("reference"), "reference");
  options.state_dtype = dtype_from(string(o, "stateDtype"), "stateDtype");
  options.seed = static_cast<std::uint64_t>(number(o, "seed"));
  if (present(o.Get("lora"))) options.lora = lora_from(object_from(o.Get("lora"), "lora"));
  options.merge_adapter = boolean(o, "mergeAdapter");
  options.base_reference = boolean(o, "baseReference");
  if (present(o.Get("referenceLora")))
    options.reference_lora = lora_from(object_from(o.Get("referenceLora"), "referenceLora"));
  const auto adamw = object_from(o.Get("adamw"), "adamw");
  options.adamw = {number(adamw, "beta1"), number(adamw, "beta2"), number(adamw, "eps"),
                   number(adamw, "weightDecay")};
  options.max_grad_norm = number(o, "maxGradNorm");
  options.head_rows = integer(o, "headRows");
  options.cache_bytes = integer(o, "cacheBytes");
  options.recompute = boolean(o, "recompute");
  options.shard = shard_from(string(o, "shard"));
  return options;
}

/// predictMemory(model, options, shape) -> Promise<{ weights, ... }>, bytes
Napi::Value predict(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    const auto model = source_from(info[0], "model");
    const auto options = options_from(object_from(info[1], "options"));
    const auto s = object_from(info[2], "shape");
    const RunShape shape = {integer(s, "promptTokens"), integer(s, "maxNewTokens"), integer(s, "sequences"),
                            integer(s, "maxBatch"), integer(s, "processes")};
    return on_engine<MemoryPrediction>(
        info.Env(), std::make_shared<Control>(),
        [model, options, shape](Control&) { return predict_memory(model.config, options, shape); },
        [](Napi::Env env, MemoryPrediction& m) {
          auto object = Napi::Object::New(env);
          const auto set = [&](const char* name, std::int64_t value) {
            object.Set(name, static_cast<double>(value));
          };
          set("weights", m.weights);
          set("masters", m.masters);
          set("moments", m.moments);
          set("gradients", m.gradients);
          set("reference", m.reference);
          set("activations", m.activations);
          set("logits", m.logits);
          set("merged", m.merged);
          set("cache", m.cache);
          set("sampling", m.sampling);
          return object;
        });
  });
}

/// load(model, options, control) -> Promise<{ handle, info, ignored }>
Napi::Value load(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    const auto model = source_from(info[0], "model");
    const auto o = object_from(info[1], "options");
    auto options = options_from(o);
    if (present(o.Get("world"))) options.world = world_of(o.Get("world"));
    return on_engine<std::shared_ptr<Policy>>(
        info.Env(), ControlObject::get(info[2]),
        [model, options](Control& control) {
          return std::shared_ptr<Policy>(Policy::load(model, options, control));
        },
        [model, options](Napi::Env env, std::shared_ptr<Policy>& policy) {
          auto handle = std::make_unique<Handle>(Handle{std::move(policy), 0});
          RunShape shape{1, 1, 1};  // what is held does not depend on the lengths
          if (options.world) shape.processes = options.world->size();
          const MemoryPrediction held = predict_memory(model.config, options, shape);
          handle->bytes = held.weights + held.reference + held.masters + held.moments + held.gradients;
          auto result = Napi::Object::New(env);
          result.Set("info", info_to_js(env, handle->policy->info()));
          const auto& names = handle->policy->info().ignored;
          auto ignored = Napi::Array::New(env, names.size());
          for (std::uint32_t i = 0; i < names.size(); ++i) ignored.Set(i, names[i]);
          result.Set("ignored", ignored);
          auto external = Napi::External<Handle>::New(env, handle.get(), [](Napi::Env e, Handle* h) {
            Napi::MemoryManagement::AdjustExternalMemory(e, -h->bytes);
            delete h;
          });
          Napi::MemoryManagement::AdjustExternalMemory(env, handle.release()->bytes);
          external.TypeTag(&kPolicyTag);
          result.Set("handle", external);
          return result;
        });
  });
}

/// dispose(handle): frees the policy when its calls have ended.
Napi::Value dispose(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    Handle& handle = handle_of(info[0]);
    auto policy = std::make_shared<std::shared_ptr<Policy>>(std::move(handle.policy));
    Napi::MemoryManagement::AdjustExternalMemory(info.Env(), -handle.bytes);
    handle.bytes = 0;
    return on_engine(info.Env(), [policy](Control&) { policy->reset(); });
  });
}

/// initialize(model, dtype, seed, configText) -> Promise<undefined>
Napi::Value initialize(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    const auto model = source_from(info[0], "model");
    const DType dtype = dtype_from(string_argument(info, 1, "dtype"), "dtype");
    const auto seed = static_cast<std::uint64_t>(number_argument(info, 2, "seed"));
    const auto config = string_argument(info, 3, "configText");
    return on_engine(info.Env(), [model, dtype, seed, config](Control& control) {
      Policy::initialize(model, dtype, seed, config, control);
    });
  });
}

/// generate(handle, prompts, sampling, control) -> Promise<{ tokenIds, offsets, logprobs, stopped,
/// cachedTokens }>
Napi::Value generate(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    auto policy = policy_of(info);
    auto prompts = packed_from(object_from(info[1], "prompts"), "prompts");
    const auto o = object_from(info[2], "sampling");
    SamplingParams sampling;
    sampling.n = integer(o, "n");
    sampling.max_new_tokens = integer(o, "maxNewTokens");
    sampling.temperature = number(o, "temperature");
    sampling.top_p = number(o, "topP");
    sampling.top_k = integer(o, "topK");
    sampling.min_p = number(o, "minP");
    sampling.stop_token_ids = copy<std::int32_t>(o.Get("stopTokenIds"), "stopTokenIds");
    const auto seeds =
        copy<double>(o.Get("seeds"), "seeds");  // whole numbers, checked in lib/model/engine.ts
    sampling.seeds.assign(seeds.begin(), seeds.end());
    sampling.max_batch = integer(o, "maxBatch");
    sampling.turn = integer(o, "turn");
    const auto limits =
        copy<double>(o.Get("maxNewTokensPerPrompt"), "maxNewTokensPerPrompt");  // checked as well
    sampling.max_new_tokens_per_prompt.assign(limits.begin(), limits.end());
    sampling.first_completion = integer(o, "firstCompletion");
    return on_engine<Completions>(
        info.Env(), ControlObject::get(info[3]),
        [policy, prompts = std::move(prompts), sampling = std::move(sampling)](Control& control) {
          return policy->generate(prompts, sampling, control);
        },
        [](Napi::Env env, Completions& completions) {
          auto result = Napi::Object::New(env);
          const auto& offsets = completions.tokens.offsets;
          if (offsets.back() > INT32_MAX)
            invalid("more than 2^31 tokens were generated: ask for fewer at once");
          result.Set("tokenIds", to_js(env, completions.tokens.token_ids));
          result.Set("offsets", to_js(env, std::vector<std::int32_t>(offsets.begin(), offsets.end())));
          result.Set("logprobs", to_js(env, completions.logprobs));
          std::vector<std::uint8_t> stopped;
          stopped.reserve(completions.finish_reasons.size());
          for (const auto reason : completions.finish_reasons)
            stopped.push_back(reason == FinishReason::kStop);
          result.Set("stopped", to_js(env, stopped));
          result.Set("cachedTokens", static_cast<double>(completions.cached_tokens));
          return result;
        });
  });
}

/// logprobs(handle, sequences, rowPositions, tokenIds, temperature, control) -> Promise<{ logprobs, entropy
/// }>
Napi::Value logprobs(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    auto policy = policy_of(info);
    auto sequences = packed_from(object_from(info[1], "sequences"), "sequences");
    auto rows = copy_indices(info[2], "rowPositions");
    auto ids = copy<std::int32_t>(info[3], "tokenIds");
    const double temperature = number_argument(info, 4, "temperature");
    return on_engine<LogprobRows>(
        info.Env(), ControlObject::get(info[5]),
        [policy, sequences = std::move(sequences), rows = std::move(rows), ids = std::move(ids), temperature](
            Control& control) { return policy->logprobs(sequences, rows, ids, temperature, control); },
        [](Napi::Env env, LogprobRows& out) {
          auto result = Napi::Object::New(env);
          result.Set("logprobs", to_js(env, out.logprobs));
          result.Set("entropy", to_js(env, out.entropy));
          return result;
        });
  });
}

/// accumulate(handle, microBatch, objective, control) -> Promise<metrics>
Napi::Value accumulate(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    auto policy = policy_of(info);
    const auto b = object_from(info[1], "batch");
    MicroBatch batch;
    batch.sequences = packed_from(object_from(b.Get("sequences"), "sequences"), "sequences");
    batch.row_positions = copy_indices(b.Get("rowPositions"), "rowPositions");
#define RAPO_COPY(name, type, js, required, ...) \
  if (const auto name = b.Get(js); required || present(name)) batch.rows.name = copy<type>(name, js);
    RAPO_ROW_ARRAYS(RAPO_COPY)
#undef RAPO_COPY
    const auto objective = objective_from(info[2]);
    return on_engine<Metrics>(
        info.Env(), ControlObject::get(info[3]),
        [policy, batch = std::move(batch), objective](Control& control) {
          return policy->accumulate(batch, objective, control);
        },
        [](Napi::Env env, Metrics& metrics) { return metrics_to_js(env, metrics); });
  });
}

/// step(handle, learningRate) -> Promise<{ gradNorm, skipped }>
Napi::Value step(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    auto policy = policy_of(info);
    const double learning_rate = number_argument(info, 1, "learningRate");
    return on_engine<StepResult>(
        info.Env(), std::make_shared<Control>(),
        [policy, learning_rate](Control& control) { return policy->step(learning_rate, control); },
        [](Napi::Env env, StepResult& result) {
          auto object = Napi::Object::New(env);
          object.Set("gradNorm", result.grad_norm);
          object.Set("skipped", result.skipped);
          return object;
        });
  });
}

/// syncReference(handle, share) -> Promise<undefined>
Napi::Value sync_reference(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    auto policy = policy_of(info);
    const double share = number_argument(info, 1, "share");
    return on_engine(info.Env(),
                     [policy, share](Control& control) { policy->sync_reference(share, control); });
  });
}

Napi::Value zero_grad(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    auto policy = policy_of(info);
    return on_engine(info.Env(), [policy](Control& control) { policy->zero_grad(control); });
  });
}

/// save(handle, dir, dtype, maxShardBytes, configText) -> Promise<undefined>
Napi::Value save(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    auto policy = policy_of(info);
    const auto dir = string_argument(info, 1, "dir");
    const DType dtype = dtype_from(string_argument(info, 2, "dtype"), "dtype");
    const auto max_shard_bytes = static_cast<std::int64_t>(number_argument(info, 3, "maxShardBytes"));
    const auto config = string_argument(info, 4, "configText");
    return on_engine(info.Env(), [policy, dir, dtype, max_shard_bytes, config](Control& control) {
      policy->save(dir, dtype, max_shard_bytes, config, control);
    });
  });
}

/// saveAdapter(handle, dir, configText) -> Promise<undefined>
Napi::Value save_adapter(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    auto policy = policy_of(info);
    const auto dir = string_argument(info, 1, "dir");
    const auto config = string_argument(info, 2, "configText");
    return on_engine(info.Env(),
                     [policy, dir, config](Control& control) { policy->save_adapter(dir, config, control); });
  });
}

/// tensors(handle) -> [{ name, shape }]
Napi::Value tensors(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    const auto policy = policy_of(info);
    const auto all = policy->tensors();
    auto array = Napi::Array::New(info.Env(), all.size());
    for (std::uint32_t i = 0; i < all.size(); ++i) {
      auto shape = Napi::Array::New(info.Env(), all[i].shape.size());
      for (std::uint32_t d = 0; d < all[i].shape.size(); ++d)
        shape.Set(d, static_cast<double>(all[i].shape[d]));
      auto tensor = Napi::Object::New(info.Env());
      tensor.Set("name", all[i].name);
      tensor.Set("shape", shape);
      array.Set(i, tensor);
    }
    return array;
  });
}

/// broadcast(handle, group, { first, count, packedBytes, timeoutMs }, control) -> Promise<undefined>
Napi::Value broadcast(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    auto policy = policy_of(info);
    auto open = group_of(info[1]);
    const auto o = object_from(info[2], "part");
    const auto first = integer(o, "first"), count = integer(o, "count");
    const auto packed_bytes = integer(o, "packedBytes"), timeout_ms = integer(o, "timeoutMs");
    const auto work = [=](Control& control) {
      policy->broadcast(*open->group, first, count, packed_bytes, timeout_ms, control);
    };
    return on_engine(info.Env(), work, ControlObject::get(info[3]));
  });
}

/// saveReference(handle, dir, configText) -> Promise<undefined>
Napi::Value save_reference(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    auto policy = policy_of(info);
    const auto dir = string_argument(info, 1, "dir");
    const auto config = string_argument(info, 2, "configText");
    return on_engine(info.Env(), [policy, dir, config](Control& control) {
      policy->save_reference(dir, config, control);
    });
  });
}

/// saveLogits(handle, sequences, rowPositions, file) -> Promise<undefined>
Napi::Value save_logits(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    auto policy = policy_of(info);
    auto sequences = packed_from(object_from(info[1], "sequences"), "sequences");
    auto positions = copy_indices(info[2], "rowPositions");
    const auto file = string_argument(info, 3, "file");
    return on_engine(info.Env(), [policy, sequences, positions, file](Control& control) {
      policy->save_logits(sequences, positions, file, control);
    });
  });
}

/// saveState, loadState, saveGradients: (handle, path, control?) -> Promise<undefined>
template <auto method>
Napi::Value with_path(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    auto policy = policy_of(info);
    const auto path = string_argument(info, 1, "path");
    const auto work = [policy, path](Control& control) { ((*policy).*method)(path, control); };
    return on_engine(info.Env(), work, ControlObject::get(info[2]));
  });
}

/// setThreads(n): takes effect with the next call; 0 restores the default.
Napi::Value set_threads(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    const double n = number_argument(info, 0, "threads");
    if (!(n >= 0 && n <= 1024 && n == std::trunc(n))) invalid("threads must be a whole number in [0, 1024]");
    wanted_threads() = static_cast<int>(n);
    return info.Env().Undefined();
  });
}

/// Node unloads an addon when the last environment that loaded it ends. The engine's thread and libtorch's
/// threads live as long as the process and would lose their code. The addon and the libraries that it is
/// linked to therefore stay loaded.
void stay_loaded() {
  Dl_info self;
  if (dladdr(reinterpret_cast<void*>(&stay_loaded), &self) != 0)
    dlopen(self.dli_fname, RTLD_LAZY | RTLD_NODELETE);
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  stay_loaded();
  env.SetInstanceData<AddonData>(new AddonData);
  exports.Set("libtorchVersion", libtorch_version());
  exports.Set("libtorchCuda", libtorch_has_cuda());
  exports.Set("setErrorClass", Napi::Function::New<set_error_class>(env));
  exports.Set("setCudaLibrary", Napi::Function::New<set_cuda_library>(env));
  exports.Set("Control", ControlObject::define(env));
  define_world(env, exports);
  define_broadcast(env, exports);
  exports.Set("setThreads", Napi::Function::New<set_threads>(env));
  exports.Set("initialize", Napi::Function::New<initialize>(env));
  exports.Set("predictMemory", Napi::Function::New<predict>(env));
  exports.Set("load", Napi::Function::New<load>(env));
  exports.Set("dispose", Napi::Function::New<dispose>(env));
  exports.Set("generate", Napi::Function::New<generate>(env));
  exports.Set("logprobs", Napi::Function::New<logprobs>(env));
  exports.Set("accumulate", Napi::Function::New<accumulate>(env));
  exports.Set("step", Napi::Function::New<step>(env));
  exports.Set("syncReference", Napi::Function::New<sync_reference>(env));
  exports.Set("zeroGrad", Napi::Function::New<zero_grad>(env));
  exports.Set("save", Napi::Function::New<save>(env));
  exports.Set("tensors", Napi::Function::New<tensors>(env));
  exports.Set("broadcast", Napi::Function::New<broadcast>(env));
  exports.Set("saveAdapter", Napi::Function::New<save_adapter>(env));
  exports.Set("saveLogits", Napi::Function::New<save_logits>(env));
  exports.Set("saveState", Napi::Function::New<with_path<&Policy::save_state>>(env));
  exports.Set("loadState", Napi::Function::New<with_path<&Policy::load_state>>(env));
  exports.Set("saveReference", Napi::Function::New<save_reference>(env));
  exports.Set("saveGradients", Napi::Function::New<with_path<&Policy::save_gradients>>(env));
  return exports;
}

}  // namespace

NODE_API_MODULE(rapo_engine, init)

}  // namespace rapo::bindings
