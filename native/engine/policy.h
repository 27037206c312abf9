// A policy with its frozen reference: load, generate, logprobs, accumulate, step, save. No header of
// libtorch is needed here, so that the bindings compile quickly.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "control.h"
#include "kernels/objective.h"
#include "types.h"

namespace rapo {

class BroadcastGroup;

struct TensorShape {
  std::string name;
  std::vector<std::int64_t> shape;
};

/// Not thread-safe. The caller (bindings/) runs one call at a time, each on the engine's thread.
class Policy {
 public:
  /// Loads model.safetensors or its sharded form. Errors name the file and the tensor. control: counts the
  /// parameters read; looked at between tensors, as in the other calls that read or write files.
  static std::unique_ptr<Policy> load(const ModelSource& model, const PolicyOptions& options,
                                      Control& control);

  /// Writes config as config.json, and model.safetensors with random weights (normal with initializer_range;
  /// norms 1; biases 0). dtype: float32 or bfloat16.
  static void initialize(const ModelSource& model, DType dtype, std::uint64_t seed, const std::string& config,
                         const Control& control);

  ~Policy();

  const ModelInfo& info() const;

  /// control counts generated tokens; its total is prompts x n x max_new_tokens.
  Completions generate(const PackedTokens& prompts, const SamplingParams& sampling, Control& control);

  /// log p(token_ids[i]) and the entropy at row_positions[i], under softmax(logits / temperature). control
  /// counts rows.
  LogprobRows logprobs(const PackedTokens& sequences, const std::vector<std::int64_t>& row_positions,
                       const std::vector<std::int32_t>& token_ids, double temperature, Control& control);

  /// Runs the forward passes of policy and reference, the head fused with the objective, and the backward
  /// pass. Adds the gradients to those accumulated before. An abort is ignored once the gradients have begun
  /// to change. With Shard::kGradients it is a call of all ranks, which exchange gradients, and an abort is
  /// ignored; a rank without sequences passes an empty batch. Where one rank fails, the gradients of all are
  /// incomplete until zero_grad().
  Metrics accumulate(const MicroBatch& batch, const Objective& objective, Control& control);

  /// Clips the norm of the accumulated gradient, makes one AdamW step on the float32 masters and sets the
  /// gradient to zero. With options.world the gradients of all ranks are added up before that; each rank
  /// accumulates its share of the batch, loads the same weights, and makes the same steps.
  StepResult step(double learning_rate, Control& control);

  /// The reference's weights become share * policy + (1 - share) * reference, share in (0, 1] (TR-DPO, arXiv
  /// 2404.09656). Reference and policy must have the same tensors.
  void sync_reference(double share, Control& control);

  /// Drops the accumulated gradients.
  void zero_grad(const Control& control);

  /// Writes the accumulated gradients under the names of the weights or of the adapter's tensors, float32, as
  /// a safetensors file. For tests and debugging.
  void save_gradients(const std::string& file, const Control& control) const;

  /// Writes the weights and config as config.json. dir must exist. A model larger than max_shard_bytes is
  /// written in shards with an index; files of an earlier save that are not overwritten are removed. dtype:
  /// float32 (the masters of a bfloat16 policy, where it has them) or bfloat16. An adapter is merged into the
  /// weights, in float32.
  void save(const std::string& dir, DType dtype, std::int64_t max_shard_bytes, const std::string& config,
            const Control& control) const;

  /// The tensors that save() writes, in their order, without their numbers.
  std::vector<TensorShape> tensors() const;

  /// Broadcasts tensors [first, first + count) of tensors(), with the numbers that save() writes in the
  /// policy's dtype. packed_bytes > 0: as bytes, end to end; a broadcast ends with the tensor with which it
  /// has more than packed_bytes. 0: each tensor by itself. control counts bytes.
  void broadcast(BroadcastGroup& group, std::int64_t first, std::int64_t count, std::int64_t packed_bytes,
                 std::int64_t timeout_ms, Control& control) const;

  /// Writes the adapter as PEFT does: adapter_model.safetensors, float32, and config as adapter_config.json.
  /// dir must exist.
  void save_adapter(const std::string& dir, const std::string& config, const Control& control) const;

  /// Writes the reference in its own dtype, which load() reads back to the same bits, and config as
  /// config.json.
  void save_reference(const std::string& dir, const std::string& config, const Control& control) const;

  /// Writes the logits (N, V) at row_positions, float32, as a safetensors file. For tests.
  void save_logits(const PackedTokens& sequences, const std::vector<std::int64_t>& row_positions,
                   const std::string& file, const Control& control);

  /// Writes masters, moments and the step count as one safetensors file, for an exact resume. With
  /// options.shard every rank writes its part of the same file, which is whole when all have returned. Any
  /// world loads it, with any shard.
  void save_state(const std::string& file, const Control& control) const;
  void load_state(const std::string& file, Control& control);

 private:
  struct Impl;
  explicit Policy(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// Sets the number of threads of libtorch and of the kernels; 0 restores the default.
void set_engine_threads(int threads);
std::string libtorch_version();
bool libtorch_has_cuda();

}  // namespace rapo
