// A Qwen2 policy with its frozen reference: load, generate, logprobs, accumulate, step, save.
// Nothing here needs libtorch's headers, so that bindings compile quickly.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "control.h"
#include "kernels/objective.h"
#include "types.h"

namespace rapo {

/// Not thread-safe: the caller (bindings) runs one call at a time, each on the engine's own thread.
class Policy {
 public:
  /// Loads config.json and model.safetensors (or its sharded form). Errors name the file and the tensor or
  /// field. control: looked at between tensors, as in the other calls that read or write files.
  static std::unique_ptr<Policy> load(const std::string& dir, const PolicyOptions& options,
                                      const Control& control);

  /// Writes a Hugging Face directory with random weights (normal, 0.02; norms 1; biases 0) for the
  /// config.json in it.
  static void initialize(const std::string& dir, std::uint64_t seed, const Control& control);

  ~Policy();

  const ModelInfo& info() const;

  /// control counts generated tokens; their total is prompts x n x max_new_tokens.
  Completions generate(const PackedTokens& prompts, const SamplingParams& sampling, Control& control);

  /// log p(token_ids[i]) and the entropy at row_positions[i], under softmax(logits / temperature). control
  /// counts rows.
  LogprobRows logprobs(const PackedTokens& sequences, const std::vector<std::int64_t>& row_positions,
                       const std::vector<std::int32_t>& token_ids, double temperature, Control& control);

  /// Forward passes of policy and reference, the head fused with the objective, and the backward pass. The
  /// gradients are added to those accumulated before. control: an abort after the gradients have begun to
  /// change comes too late.
  Metrics accumulate(const MicroBatch& batch, const Objective& objective, Control& control);

  /// Clips the norm of the accumulated gradient, takes one AdamW step on the float32 masters and sets the
  /// gradient to zero.
  StepResult step(double learning_rate, Control& control);

  /// The reference's weights become share * policy + (1 - share) * reference, share in (0, 1] (TR-DPO, arXiv
  /// 2404.09656). Reference and policy must have the same tensors.
  void sync_reference(double share, Control& control);

  /// Drops the accumulated gradients.
  void zero_grad();

  /// The accumulated gradients by the weights' names, float32, as a safetensors file; for tests and
  /// debugging.
  void save_gradients(const std::string& file, const Control& control) const;

  /// Writes the weights and config.json as loaded, which is everything that transformers needs except for the
  /// tokenizer's files. dir must exist. A model larger than max_shard_bytes is written in shards with an
  /// index; files of an earlier save that are not overwritten are removed. dtype: float32 (the masters of a
  /// bfloat16 policy, where it has them) or bfloat16.
  void save(const std::string& dir, DType dtype, std::int64_t max_shard_bytes, const Control& control) const;

  /// The reference in the same way, in its own dtype, which load() reads back to the same bits.
  void save_reference(const std::string& dir, const Control& control) const;

  /// The logits (N, V), float32, at row_positions, as a safetensors file; for tests.
  void save_logits(const PackedTokens& sequences, const std::vector<std::int64_t>& row_positions,
                   const std::string& file, const Control& control);

  /// Masters, moments and step count for an exact resume, as one safetensors file.
  void save_state(const std::string& file, const Control& control) const;
  void load_state(const std::string& file, const Control& control);

 private:
  struct Impl;
  explicit Policy(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// The number of threads that libtorch and the kernels use; 0 restores the default.
void set_engine_threads(int threads);
std::string libtorch_version();
bool libtorch_has_cuda();

}  // namespace rapo
