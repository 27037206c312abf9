#include "policy.h"

#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>
#include <torch/version.h>

#include <algorithm>
#include <cmath>
#include <exception>

#include "comm/broadcast.h"
#include "comm/world.h"
#include "cuda/device.h"
#include "files/write.h"
#include "generate/generate.h"
#include "kernels/parallel.h"
#include "kernels/sequence.h"
#include "model/checks.h"
#include "model/fused_head.h"
#include "model/memory.h"
#include "model/optimizer.h"
#include "model/packing.h"
#include "model/qwen2.h"
#include "model/sharded_gradients.h"
#include "model/shards.h"
#include "model/weights.h"
#include "ops/aten.h"
#include "ops/blocks.h"

namespace rapo {
namespace {

/// Runs the body of a call. An exception of libtorch becomes an Error that says what was being done.
template <class F>
auto translated(const char* doing, F&& body) -> decltype(body()) {
  // Nothing is recorded for autograd, since the backward pass is written out in model/qwen2.cpp.
  const c10::InferenceMode guard;
  const ReuseBlocks reuse;
  try {
    return body();
  } catch (const Error&) {
    throw;
  } catch (const std::bad_alloc&) {
    throw Error(ErrorCode::kOutOfMemory, std::string("out of memory while ") + doing);
  } catch (const c10::Error& error) {
    const std::string what = error.what_without_backtrace();
    const bool memory =
        what.find("allocate memory") != std::string::npos || what.find("out of memory") != std::string::npos;
    throw Error(
        memory ? ErrorCode::kOutOfMemory : ErrorCode::kUnsupported,
        std::string(memory ? "out of memory while " : "libtorch failed while ") + doing + ": " + what);
  }
}

/// The numbers of a tensor of the model as they leave it: of `type`, with the adapter's term if adapter is
/// not null and has one.
at::Tensor outgoing(const std::string& name, at::Tensor weights, const Adapter* adapter,
                    at::ScalarType type) {
  const auto delta = adapter ? adapter->delta(name) : at::Tensor();
  if (delta.defined()) weights = weights.to(at::kCPU, at::kFloat).add(delta.view({weights.numel()}));
  return weights.to(type);
}

/// Writes a Hugging Face directory's weights, and config as config.json. flat: the net's weights, on any
/// device and of any dtype. adapter: is merged into them unless null.
void write_weights(const std::string& dir, const Qwen2& net, at::Tensor flat, const Adapter* adapter,
                   DType dtype, std::int64_t max_shard_bytes, const std::string& config,
                   const Control& control) {
  flat = flat.to(at::kCPU);
  const auto type = ops::scalar_type(dtype);
  const auto stored = net.layout().stored(flat);
  if (flat.scalar_type() == type && !adapter) {
    write_model(dir, stored, max_shard_bytes, control);
  } else {  // each tensor is converted when it is written
    write_model(
        dir, stored, max_shard_bytes, control, ops::stored_name(dtype), [&](const StoredTensor& tensor) {
          std::int64_t count = 1;
          for (const auto size : tensor.shape) count *= size;
          const auto weights = at::from_blob(const_cast<std::byte*>(tensor.data), {count},
                                             at::TensorOptions(flat.scalar_type()));
          auto converted = std::make_shared<at::Tensor>(outgoing(tensor.name, weights, adapter, type));
          return std::shared_ptr<const void>(converted, converted->data_ptr());
        });
  }
  write_text_file(dir + "/config.json", config);
}

bool same_tensors(const Layout& a, const Layout& b) {
  const auto is_same = [](const Layout::Entry& x, const Layout::Entry& y) {
    return x.name == y.name && x.shape == y.shape;
  };
  return std::equal(a.entries().begin(), a.entries().end(), b.entries().begin(), b.entries().end(), is_same);
}

}  // namespace

struct Policy::Impl {
  PolicyOptions options;
  ModelInfo info;
  std::unique_ptr<Model> policy, reference;
  std::unique_ptr<ReadyWeights> reference_ready;  // the policy's model with an adapter that does not change

  // The next members exist only in a trainable policy.
  std::unique_ptr<Shards> shards;  // null: nothing is shared out
  at::Tensor grad;  // flat, float32 also for bfloat16 weights: sums over micro-batches need the precision
  Gradients grads;
  std::unique_ptr<ShardedGradients> sharded;  // in place of grad; null: every rank has all gradients
  std::unique_ptr<Optimizer> optimizer;
  KeptSequences kept;        // what the last call of generate() left for the next turn of its conversations
  bool grad_broken = false;  // an accumulate() failed after it had begun to change grad

  const ModelConfig& config() const { return policy->net.config(); }
  const ops::Backend& ops() const { return policy->net.ops(); }

  void need_trainable(const char* call) const {
    if (!options.trainable) invalid(std::string(call) + " needs a policy loaded with trainable: true");
  }

  /// What is trained: the adapter where there is one.
  const FlatLayout& trained() const {
    if (policy->adapter) return policy->adapter->layout;
    return policy->net.layout();
  }

  /// The reference and its weights; null without a reference. With an adapter the reference may be the
  /// policy's model without the adapter, or with another one.
  std::pair<Model*, const ReadyWeights*> reference_model() const {
    if (options.base_reference)
      return {policy.get(), reference_ready ? reference_ready.get() : &policy->base()};
    if (reference) return {reference.get(), &reference->ready()};
    return {nullptr, nullptr};
  }

  Model& need_reference(const char* call) const {
    if (options.base_reference)
      invalid(std::string(call) +
              " needs a reference of its own: it is the policy's model without its adapter");
    if (!reference) invalid(std::string(call) + " needs a policy loaded with a referenceDir");
    return *reference;
  }

  const Adapter& need_adapter(const char* call) const {
    if (!policy->adapter) invalid(std::string(call) + " needs a policy with an adapter");
    return *policy->adapter;
  }

  void need_whole_grad() const {
    if (grad_broken) invalid("a failed accumulate() left the gradients incomplete: call zeroGrad() first");
  }

  std::int64_t head_rows() const {
    return options.head_rows > 0
               ? options.head_rows
               : default_head_rows(config().vocab_size, policy->element_size(), policy->flat.is_cpu());
  }

  std::int64_t chunk_tokens() const {
    return train_chunk_tokens(config(), policy->net.layout().parameters(), policy->element_size(),
                              options.recompute, policy->flat.is_cpu());
  }

  void make_trainable(const at::Device& device, Control& control);

  /// What accumulate() does, chunk by chunk.
  struct Work {
    std::vector<TrainChunk> chunks;
    std::vector<double> sequence_ratios;
  };
  Work prepare(const MicroBatch& batch, const Objective& objective, Control& control);
  Metrics accumulate(const MicroBatch& batch, const Objective& objective, Control& control);
  Metrics accumulate_together(const MicroBatch& batch, const Objective& objective, Control& control);
  Metrics accumulate_chunk(const TrainChunk& chunk, const MicroBatch& batch, const Objective& objective,
                           const std::vector<double>& sequence_ratios, Control& control);
  std::vector<double> sequence_ratios(const MicroBatch& batch, double temperature, Control& control);
  LogprobRows logprobs(const MicroBatch& batch, double temperature, Control& control);
};

Policy::Policy(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Policy::~Policy() = default;

std::unique_ptr<Policy> Policy::load(const ModelSource& model, const PolicyOptions& options,
                                     Control& control) {
  return translated("loading a model", [&] {
    const at::Device device = device::open(options.device);
    ops::check_model_dtype(options.dtype);
    auto impl = std::make_unique<Impl>();
    impl->options = options;
    const bool is_sharded = options.world && options.shard != Shard::kNone;
    const bool reads_masters =
        options.trainable && options.lora.r == 0 && options.dtype != DType::kFloat32 && !is_sharded;
    control.total = Layout(model.config).parameters() * (reads_masters ? 2 : 1);
    if (!options.reference.dir.empty()) control.total += Layout(options.reference.config).parameters();
    const ops::Backend& backend = ops::backend_of(options.backend, device);
    impl->policy = std::make_unique<Model>(model, options.dtype, device, backend, control);
    const Layout& layout = impl->policy->net.layout();
    if (options.lora.r > 0) {
      impl->policy->adapter =
          std::make_unique<Adapter>(model.config, options.lora, options.dtype, device, control);
      impl->policy->merges = options.merge_adapter;
      impl->policy->seed = options.seed;
    }
    if (options.reference_lora.r > 0) {
      const Adapter adapter(model.config, options.reference_lora, options.dtype, device, control);
      impl->reference_ready = std::make_unique<ReadyWeights>(impl->policy->base());
      impl->reference_ready->add(backend, adapter.tensors, adapter.scaling);
    }
    if (options.trainable) impl->make_trainable(device, control);
    impl->policy->checkpoint = {};
    if (!options.reference.dir.empty()) {
      impl->reference = std::make_unique<Model>(options.reference, options.dtype, device, backend, control);
      impl->reference->checkpoint = {};
      if (impl->reference->net.config().vocab_size != impl->config().vocab_size) {
        invalid("the reference's vocabulary has " + std::to_string(impl->reference->net.config().vocab_size) +
                " words, the policy's " + std::to_string(impl->config().vocab_size));
      }
    }
    const ModelConfig& c = impl->config();
    impl->info = {c.vocab_size,
                  c.hidden_size,
                  c.layers,
                  c.heads,
                  c.kv_heads,
                  c.head_dim,
                  c.max_position_embeddings,
                  layout.parameters(),
                  c.tied_embeddings,
                  options.dtype,
                  impl->policy->ignored,
                  impl->policy->adapter ? impl->policy->adapter->layout.parameters() : 0};
    if (impl->reference) {
      const auto& more = impl->reference->ignored;
      impl->info.ignored.insert(impl->info.ignored.end(), more.begin(), more.end());
    }
    return std::unique_ptr<Policy>(new Policy(std::move(impl)));
  });
}

void Policy::Impl::make_trainable(const at::Device& device, Control& control) {
  const FlatLayout& trained = this->trained();
  const Layout& layout = policy->net.layout();
  World* world = options.world.get();
  const auto zeros = [&](std::int64_t size) {
    return at::zeros({size}, at::TensorOptions(at::kFloat).device(device));
  };
  if (world && options.shard != Shard::kNone) {
    if (policy->adapter) invalid("shard must be none for a policy with an adapter, whose state is small");
    const std::int64_t most = Shards::piece_elements(device.is_cpu());
    shards = std::make_unique<Shards>(layout, world->rank(), world->size(), most);
  }
  at::Tensor weights = policy->flat, master = weights;  // float32 weights are their own masters
  if (const Adapter* adapter = policy->adapter.get()) {
    weights = adapter->flat;
    master = adapter->master;
  } else if (options.dtype != DType::kFloat32) {
    master = zeros(shards ? shards->shard_size() : layout.flat_size());
    if (shards) {
      read_shard(policy->checkpoint, layout, *shards, master, control);
    } else {
      read_weights(policy->checkpoint, layout, master, control);
    }
  }
  if (shards && options.shard == Shard::kGradients) {
    sharded = std::make_unique<ShardedGradients>(layout, *shards, *world, device, grads);
  } else {
    grad = zeros(trained.flat_size());
    if (const Adapter* adapter = policy->adapter.get()) {
      grads.weights.layers.resize(policy->weights.layers.size());
      grads.adapter = adapter->layout.map(grad);
    } else {
      grads.weights = layout.map(grad);
    }
  }
  optimizer = std::make_unique<Optimizer>(ops(), trained, options, master, weights, shards.get(), world);
}

void Policy::initialize(const ModelSource& model, DType dtype, std::uint64_t seed, const std::string& config,
                        const Control& control) {
  translated("initializing a model", [&] {
    const Layout layout(model.config);
    auto flat = random_weights(model.config, layout, seed, control).to(ops::scalar_type(dtype));
    write_safetensors(model.dir + "/model.safetensors", layout.stored(flat), {{"format", "pt"}}, control);
    write_text_file(model.dir + "/config.json", config);
  });
}

const ModelInfo& Policy::info() const { return impl_->info; }

Completions Policy::generate(const PackedTokens& prompts, const SamplingParams& sampling, Control& control) {
  return translated("generating", [&] {
    check_sampling(prompts, sampling, impl_->config());
    return rapo::generate(*impl_->policy, prompts, sampling, impl_->options.cache_bytes, impl_->kept,
                          control);
  });
}

LogprobRows Policy::logprobs(const PackedTokens& sequences, const std::vector<std::int64_t>& row_positions,
                             const std::vector<std::int32_t>& token_ids, double temperature,
                             Control& control) {
  return translated("computing log-probs", [&] {
    check_rows(sequences, row_positions, token_ids, temperature, impl_->config());
    MicroBatch batch;
    batch.sequences = sequences;
    batch.row_positions = row_positions;
    batch.rows.token_ids = token_ids;
    batch.rows.token_weights.assign(row_positions.size(), 1);
    control.total = static_cast<std::int64_t>(row_positions.size());
    return impl_->logprobs(batch, temperature, control);
  });
}

/// Rows of weight 0 are not computed; their results are 0.
LogprobRows Policy::Impl::logprobs(const MicroBatch& batch, double temperature, Control& control) {
  LogprobRows out;
  out.logprobs.resize(batch.rows.token_ids.size());
  out.entropy.resize(batch.rows.token_ids.size());
  Model& model = *policy;
  for (const TrainChunk& chunk : plan_chunks(batch, chunk_tokens())) {
    const std::size_t rows = chunk.rows.size();
    const auto hidden =
        ops().gather_rows(model.net.forward(model.weights, model.ready(), chunk.input, control),
                          chunk.positions.data(), static_cast<std::int64_t>(rows));
    std::vector<std::int32_t> ids;
    ids.reserve(rows);
    for (const std::int64_t row : chunk.rows) ids.push_back(batch.rows.token_ids[row]);
    std::vector<float> logprobs(rows), entropy(rows);
    fused_head_logprobs(ops(), hidden, model.ready().head, ids.data(), chunk.rows.data(), temperature,
                        head_rows(), control, logprobs.data(), entropy.data());
    for (std::size_t i = 0; i < rows; ++i) {
      out.logprobs[chunk.rows[i]] = logprobs[i];
      out.entropy[chunk.rows[i]] = entropy[i];
    }
    control.done += static_cast<std::int64_t>(rows);
  }
  return out;
}

/// gspo needs all log-probs of a sequence before the sequence's first gradient, and so one more forward pass.
std::vector<double> Policy::Impl::sequence_ratios(const MicroBatch& batch, double temperature,
                                                  Control& control) {
  const auto offsets = sequence_offsets(batch);
  Batch rows = rows_of(batch);
  rows.sequences = static_cast<std::int64_t>(offsets.size()) - 1;
  rows.sequence_offsets = offsets.data();
  std::vector<double> logprobs(batch.rows.token_ids.size());
  if (!batch.rows.old_logprobs.empty()) {
    const auto computed = this->logprobs(batch, temperature, control).logprobs;
    logprobs.assign(computed.begin(), computed.end());
  }
  return sequence_log_ratios(rows, logprobs);
}

Policy::Impl::Work Policy::Impl::prepare(const MicroBatch& batch, const Objective& objective,
                                         Control& control) {
  need_whole_grad();
  check_sequences(batch.sequences, config(), "sequences");
  check_positions(batch.sequences, batch.row_positions);
  check_loss(batch, objective, config().vocab_size);
  if (objective.penalty != Penalty::kNone) {
    const Model* model = reference_model().first;
    if (!model) invalid("the objective's penalty needs a policy loaded with a referenceDir");
    check_sequences(batch.sequences, model->net.config(), "sequences (for the reference)");
  }
  Work work;
  if (objective.surrogate == Surrogate::kGspo)
    work.sequence_ratios = sequence_ratios(batch, objective.temperature, control);
  work.chunks = plan_chunks(batch, chunk_tokens());
  return work;
}

Metrics Policy::Impl::accumulate(const MicroBatch& batch, const Objective& objective, Control& control) {
  need_trainable("accumulate()");
  kept.clear();  // training needs the memory, and then changes the weights
  policy->drop_merged();
  if (sharded) return accumulate_together(batch, objective, control);
  const Work work = prepare(batch, objective, control);
  Metrics total;
  for (const TrainChunk& chunk : work.chunks)
    total.add(accumulate_chunk(chunk, batch, objective, work.sequence_ratios, control));
  grad_broken = false;
  return total;
}

/// Every backward pass exchanges gradients, so that all ranks make the same number of passes, also a rank
/// that has failed or has no chunks left.
Metrics Policy::Impl::accumulate_together(const MicroBatch& batch, const Objective& objective,
                                          Control& control) {
  const std::string what = "gradients of optimizer step " + std::to_string(optimizer->steps() + 1);
  control.committed = true;  // the other ranks would wait for one that is stopped
  Work work;
  std::exception_ptr failure;
  try {
    const bool is_empty = batch.sequences.token_ids.empty() && batch.row_positions.empty();
    if (!is_empty) work = prepare(batch, objective, control);
  } catch (...) {
    failure = std::current_exception();
  }
  const double own = failure ? -1 : static_cast<double>(work.chunks.size());
  const auto all = options.world->numbers(what, own, control);
  grad_broken = true;  // reset below
  const bool has_failed = *std::min_element(all.begin(), all.end()) < 0;
  if (failure) std::rethrow_exception(failure);
  Metrics total;
  if (has_failed) return total;  // another rank throws
  const auto passes = static_cast<std::size_t>(*std::max_element(all.begin(), all.end()));
  for (std::size_t i = 0; i < passes; ++i) {
    sharded->begin_pass(what, control);
    try {
      if (!failure && i < work.chunks.size())
        total.add(accumulate_chunk(work.chunks[i], batch, objective, work.sequence_ratios, control));
    } catch (const Error& error) {
      if (error.code() == ErrorCode::kDistributed) throw;  // there is nobody to go on with
      failure = std::current_exception();
    } catch (...) {
      failure = std::current_exception();
    }
    sharded->end_pass();
  }
  if (failure) std::rethrow_exception(failure);
  grad_broken = false;
  return total;
}

Metrics Policy::Impl::accumulate_chunk(const TrainChunk& chunk, const MicroBatch& batch,
                                       const Objective& objective, const std::vector<double>& sequence_ratios,
                                       Control& control) {
  const auto rows = static_cast<std::int64_t>(chunk.rows.size());
  const auto hidden_rows = [&](Model& model, const ReadyWeights& ready, TrunkActivations* keep) {
    return ops().gather_rows(model.net.forward(model.weights, ready, chunk.input, control, keep),
                             chunk.positions.data(), rows);
  };
  at::Tensor ref_hidden;
  ops::Linear ref_head;
  if (objective.penalty != Penalty::kNone) {
    const auto [model, ready] = reference_model();
    ref_hidden = hidden_rows(*model, *ready, nullptr);
    ref_head = ready->head;
  }
  TrunkActivations kept;
  kept.inputs_only = options.recompute;
  const auto hidden = hidden_rows(*policy, policy->ready(), &kept);
  control.check();

  MicroBatch part;
  part.rows = batch.rows.take(chunk.rows);
  std::vector<double> ratios;
  for (std::size_t i = 0; i < chunk.rows.size() && !sequence_ratios.empty(); ++i)
    ratios.push_back(sequence_ratios[static_cast<std::size_t>(chunk.rows[i])]);
  HeadRows head{hidden, ref_hidden, rows_of(part)};
  head.batch.vocab_size = config().vocab_size;
  head.batch.row_names = chunk.rows.data();
  head.batch.sequence_log_ratios = ratios.empty() ? nullptr : ratios.data();

  grad_broken = control.committed = true;  // reset when the last chunk is done
  auto dhidden = at::empty_like(hidden);
  const Metrics metrics = fused_head_loss(ops(), head, policy->ready().head, ref_head, objective, head_rows(),
                                          control, dhidden, grads.weights.head);
  const auto tokens = static_cast<std::int64_t>(chunk.input.token_ids.size());
  policy->net.backward(policy->weights, policy->ready(), grads, chunk.input, kept,
                       ops().spread_rows(dhidden, chunk.positions, tokens), control);
  return metrics;
}

Metrics Policy::accumulate(const MicroBatch& batch, const Objective& objective, Control& control) {
  return translated("accumulating gradients", [&] { return impl_->accumulate(batch, objective, control); });
}

StepResult Policy::step(double learning_rate, Control& control) {
  return translated("stepping", [&] {
    impl_->need_trainable("step()");
    impl_->kept.clear();
    impl_->need_whole_grad();
    if (!(learning_rate >= 0) || std::isinf(learning_rate)) invalid("learningRate must be >= 0");
    control.committed = true;
    World* world = impl_->options.world.get();
    const std::string what = "optimizer step " + std::to_string(impl_->optimizer->steps() + 1);
    ShardedGradients* sharded = impl_->sharded.get();
    at::Tensor& grad = sharded ? sharded->shard(control) : impl_->grad;
    if (world && !sharded) world->sum(what + ", gradients", grad, control);
    double norm = impl_->ops().norm_of(grad);
    if (sharded) {
      double squares = 0;
      for (const double part : world->numbers(what + ", norm", norm, control)) squares += part * part;
      norm = std::sqrt(squares);
    }
    const StepResult result = impl_->optimizer->step(grad, sharded != nullptr, norm, learning_rate, control);
    impl_->policy->changed(impl_->optimizer->steps());
    grad.zero_();
    return result;
  });
}

void Policy::sync_reference(double share, Control& control) {
  translated("synchronizing the reference", [&] {
    Model& reference = impl_->need_reference("syncReference()");
    if (!(share > 0 && share <= 1)) invalid("share must be in (0, 1]");
    if (!same_tensors(reference.net.layout(), impl_->policy->net.layout())) {
      invalid("syncReference() needs a reference with the policy's tensors: it is a model of another shape");
    }
    control.committed = true;
    const auto mix = [&](std::int64_t begin, const at::Tensor& from) {
      reference.mix_in(begin, from, share);
    };
    // In a trainable bfloat16 policy, the masters have digits that the weights have lost.
    if (impl_->optimizer && share < 1) {
      impl_->optimizer->each_master(mix, control);
    } else {
      mix(0, impl_->policy->flat);
    }
    reference.changed();
  });
}

void Policy::zero_grad(const Control& control) {
  translated("dropping gradients", [&] {
    impl_->need_trainable("zeroGrad()");
    if (impl_->sharded) {
      impl_->sharded->zero(control);
    } else {
      impl_->grad.zero_();
    }
    impl_->grad_broken = false;
  });
}

void Policy::save_gradients(const std::string& file, const Control& control) const {
  translated("saving gradients", [&] {
    impl_->need_trainable("saveGradients()");
    if (impl_->sharded) invalid("saveGradients() needs a policy whose gradients are not shared out (shard)");
    const auto grad = impl_->grad.to(at::kCPU);
    write_safetensors(file, impl_->trained().stored(grad), {}, control);
  });
}

void Policy::save_adapter(const std::string& dir, const std::string& config, const Control& control) const {
  translated("saving an adapter", [&] {
    const Adapter& adapter = impl_->need_adapter("saveAdapter()");
    const auto master = adapter.master.to(at::kCPU);
    write_safetensors(dir + "/adapter_model.safetensors", adapter.layout.stored(master), {{"format", "pt"}},
                      control);
    write_text_file(dir + "/adapter_config.json", config);
  });
}

void Policy::save(const std::string& dir, DType dtype, std::int64_t max_shard_bytes,
                  const std::string& config, const Control& control) const {
  translated("saving a model", [&] {
    ops::check_model_dtype(dtype);
    if (max_shard_bytes < 1)
      invalid("maxShardBytes must be at least 1, got " + std::to_string(max_shard_bytes));
    at::Tensor flat = impl_->policy->flat;
    // float32 files of a trainable policy are written from its masters.
    const Adapter* adapter = impl_->policy->adapter.get();
    if (dtype == DType::kFloat32 && impl_->optimizer && !adapter) {
      if (!impl_->optimizer->has_all_masters()) {
        invalid(
            "dtype must be the policy's own where the ranks share out the masters (shard), of which float32 "
            "files "
            "are written");
      }
      flat = impl_->optimizer->master();
    }
    write_weights(dir, impl_->policy->net, flat, adapter, dtype, max_shard_bytes, config, control);
  });
}

std::vector<TensorShape> Policy::tensors() const {
  std::vector<TensorShape> all;
  for (const auto& entry : impl_->policy->net.layout().entries()) all.push_back({entry.name, entry.shape});
  return all;
}

void Policy::broadcast(BroadcastGroup& group, std::int64_t first, std::int64_t count,
                       std::int64_t packed_bytes, std::int64_t timeout_ms, Control& control) const {
  translated("broadcasting weights", [&] {
    const auto& entries = impl_->policy->net.layout().entries();
    const auto all = static_cast<std::int64_t>(entries.size());
    if (first < 0 || count < 1 || count > all || first > all - count) {
      invalid("first and count are " + std::to_string(first) + " and " + std::to_string(count) +
              ", expected tensors among the policy's " + std::to_string(all));
    }
    const Patience patience(timeout_ms, control);
    const at::Tensor& flat = impl_->policy->flat;
    const auto width = static_cast<std::int64_t>(flat.element_size());
    std::vector<const Layout::Entry*> part;  // of one broadcast
    std::int64_t bytes = 0;
    const auto send = [&] {
      const auto numbers = [&](const Layout::Entry& entry) {
        return outgoing(entry.name, flat.narrow(0, entry.offset, entry.size), impl_->policy->adapter.get(),
                        flat.scalar_type());
      };
      const std::string begin = part.front()->name, end = part.back()->name;
      // A copy: the group's thread may still read it after a call that gave up.
      at::Tensor sent;
      if (packed_bytes > 0) {
        sent = at::empty({bytes}, flat.options().dtype(at::kByte));
        std::int64_t at = 0;
        for (const auto* entry : part) {
          sent.narrow(0, at, entry->size * width).copy_(numbers(*entry).view(at::kByte));
          at += entry->size * width;
        }
      } else {
        sent = at::empty(part.front()->shape, flat.options());
        sent.copy_(numbers(*part.front()).view(part.front()->shape));
      }
      device::synchronize(flat.device());  // the thread of the group has another stream
      group.broadcast(begin == end ? begin : begin + " to " + end, std::move(sent), patience);
      control.done += bytes;
      part.clear();
      bytes = 0;
    };
    for (std::int64_t i = first; i < first + count; ++i)
      control.total += entries[static_cast<std::size_t>(i)].size * width;
    for (std::int64_t i = first; i < first + count; ++i) {
      const auto& entry = entries[static_cast<std::size_t>(i)];
      part.push_back(&entry);
      bytes += entry.size * width;
      if (bytes > packed_bytes) send();
    }
    if (!part.empty()) send();
    group.flush(patience);
  });
}

void Policy::save_reference(const std::string& dir, const std::string& config, const Control& control) const {
  translated("saving the reference", [&] {
    const Model& reference = impl_->need_reference("saveReference()");
    constexpr std::int64_t kShardBytes = 5'000'000'000;
    write_weights(dir, reference.net, reference.flat, nullptr, impl_->options.dtype, kShardBytes, config,
                  control);
  });
}

void Policy::save_logits(const PackedTokens& sequences, const std::vector<std::int64_t>& row_positions,
                         const std::string& file, const Control& control) {
  translated("computing logits", [&] {
    check_sequences(sequences, impl_->config(), "sequences");
    check_positions(sequences, row_positions);
    auto& model = *impl_->policy;
    const auto input = plain_input(sequences, 0, sequences.offsets.size() - 1);
    const auto rows = static_cast<std::int64_t>(row_positions.size());
    const auto& ops = impl_->ops();
    const auto hidden = ops.gather_rows(model.net.forward(model.weights, model.ready(), input, control),
                                        row_positions.data(), rows);
    const auto logits = ops.linear(hidden, model.ready().head, {}).to(at::kCPU, at::kFloat);
    StoredTensor tensor;
    tensor.name = "logits";
    tensor.dtype = "F32";
    tensor.shape = {rows, impl_->config().vocab_size};
    tensor.data = static_cast<const std::byte*>(logits.data_ptr());
    tensor.bytes = logits.nbytes();
    write_safetensors(file, {tensor}, {}, control);
  });
}

void Policy::save_state(const std::string& file, const Control& control) const {
  translated("saving the optimizer's state", [&] {
    impl_->need_trainable("saveState()");
    impl_->optimizer->save(file, control);
  });
}

void Policy::load_state(const std::string& file, Control& control) {
  translated("loading the optimizer's state", [&] {
    impl_->need_trainable("loadState()");
    impl_->kept.clear();
    impl_->optimizer->load(file, control);
    impl_->policy->changed(impl_->optimizer->steps());
  });
}

void set_engine_threads(int threads) {
  static const int machine = at::get_num_threads();
  at::set_num_threads(threads > 0 ? threads : machine);
  set_kernel_threads(threads);
}

std::string libtorch_version() { return TORCH_VERSION; }
bool libtorch_has_cuda() { return device::has_cuda(); }

}  // namespace rapo
