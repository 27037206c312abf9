// The plain structs of a policy's arguments and results. No header of libtorch is needed for them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/row_vectors.h"
#include "model/config.h"

namespace rapo {

class World;

struct AdamW {
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0;
};

/// What the ranks of a world share out, so that none holds all of it: nothing; masters and moments; gradients
/// too (ZeRO-1 and ZeRO-2, arXiv 1910.02054).
enum class Shard : std::uint8_t { kNone, kOptimizer, kGradients };

/// An adapter of low rank (model/adapter.h). lib/model/adapter.ts makes this from PEFT's fields.
struct LoraOptions {
  std::int64_t r = 0;                       // the rank; 0: no adapter
  double scaling = 1;                       // s in y = W x + s B (A x)
  std::vector<std::string> target_modules;  // names of a layer's matrices, such as q_proj
  std::string file;                         // adapter_model.safetensors; empty: a new adapter
  std::uint64_t seed = 0;                   // of a new adapter
};

struct PolicyOptions {
  DType dtype = DType::kFloat32;  // of weights and activations; kFloat32 or kBFloat16. Masters are float32.
  DType state_dtype = DType::kFloat32;  // of AdamW's moments; kBFloat16 is rounded stochastically
  std::uint64_t seed = 0;               // of stochastic rounding
  std::string device = "cpu";           // "cpu", "cuda" or "cuda:N"
  std::string backend;    // table of operations: "cpu" or "aten" (ops/ops.h); empty: the device's own
  bool trainable = true;  // false: no gradients, masters or moments are held
  ModelSource reference;  // the frozen reference
  LoraOptions lora;
  bool merge_adapter = true;    // generate() samples from W + s B A, made once for each optimizer step
  bool base_reference = false;  // the reference is the policy's own model without its adapter, ...
  LoraOptions reference_lora;   // ... or with this one, which does not change
  AdamW adamw;
  double max_grad_norm = 1;    // > 0
  bool recompute = false;      // keep only each layer's input; compute the rest again in the backward pass
  std::int64_t head_rows = 0;  // rows in a chunk of the fused head; 0: see default_head_rows()
  std::int64_t cache_bytes = std::int64_t{1}
                             << 30;  // for keys and values on the CPU; one sequence may exceed it
  std::shared_ptr<World> world;      // the ranks that train the same policy; null: this process alone
  Shard shard = Shard::kNone;        // without an adapter; of one process nothing is shared out
};

struct SamplingParams {
  std::int64_t n = 1;                        // completions per prompt
  std::int64_t max_new_tokens = 0;           // >= 1
  double temperature = 1;                    // 0: greedy
  double top_p = 1;                          // (0, 1]
  std::int64_t top_k = 0;                    // 0: off
  double min_p = 0;                          // [0, 1): keep tokens with p >= min_p * max p
  std::vector<std::int32_t> stop_token_ids;  // each ends a completion, of which it is the last token
  /// One seed: token t of completion i draws from the stream (seed, first_completion + i, t). Or one seed per
  /// prompt: i then counts the completions of that prompt, without first_completion.
  std::vector<std::uint64_t> seeds{0};
  std::int64_t first_completion = 0;  // >= 0: completions of the same seed that others sample before these
  std::int64_t max_batch = 0;         // sequences decoded at once; 0: chosen from the model's size
  std::vector<std::int64_t> max_new_tokens_per_prompt;  // each <= max_new_tokens; empty: all are that
  /// The number of the turn in conversations, from 1; 0: these are none. The keys and values of the
  /// completions of a turn are kept for the next turn, whose prompts begin with this turn's prompts and
  /// completions.
  std::int64_t turn = 0;

  std::int64_t limit(std::size_t prompt) const {
    return max_new_tokens_per_prompt.empty() ? max_new_tokens : max_new_tokens_per_prompt[prompt];
  }
};

/// Token sequences laid end to end: sequence b is token_ids[offsets[b] .. offsets[b + 1]).
struct PackedTokens {
  std::vector<std::int32_t> token_ids;  // (total)
  std::vector<std::int64_t> offsets;    // (B + 1), ascending, from 0
};

enum class FinishReason : std::uint8_t { kStop, kLength };

/// Completions in the order prompt 0 sample 0, prompt 0 sample 1, ...
struct Completions {
  PackedTokens tokens;
  std::vector<float> logprobs;  // (total) under softmax(logits / temperature), before top-k/top-p/min-p;
                                // greedy: temperature 1
  std::vector<FinishReason> finish_reasons;  // (B)
  std::int64_t cached_tokens = 0;            // tokens of the prompts that the last turn had left in the cache
};

/// A batch for accumulate(): whole sequences, and one row per trained token.
struct MicroBatch {
  PackedTokens sequences;
  /// (N) row i predicts the token behind sequences.token_ids[row_positions[i]].
  std::vector<std::int64_t> row_positions;
  RowVectors rows;
};

struct LogprobRows {
  std::vector<float> logprobs;  // (N)
  std::vector<float> entropy;   // (N)
};

struct StepResult {
  double grad_norm = 0;  // before clipping
  bool skipped = false;  // the norm was not finite: the gradient was dropped and the weights did not change
};

struct ModelInfo {
  std::int64_t vocab_size = 0, hidden_size = 0, layers = 0, heads = 0, kv_heads = 0, head_dim = 0;
  std::int64_t max_position_embeddings = 0, parameters = 0;
  bool tied_embeddings = false;
  DType dtype = DType::kFloat32;
  /// Tensors of the policy's and the reference's files that the policy does not use, as "FILE: NAME".
  std::vector<std::string> ignored;
  std::int64_t adapter_parameters = 0;
};

/// What predict_memory() must know of a run.
struct RunShape {
  std::int64_t prompt_tokens = 0, max_new_tokens = 0;  // of the longest prompt; of one completion
  std::int64_t sequences = 0;                          // completions in one call of generate
  std::int64_t max_batch = 0;                          // as in SamplingParams
  std::int64_t processes = 1;                          // ranks of the world
};

/// All in bytes. Held all the time: weights, masters (of bfloat16 weights), moments, gradients, reference.
/// Added in training: activations, and the logits of a chunk of the head. Added in generation: merged (the
/// weights that an adapter changes, merged), cache (keys and values), and sampling (logits and the
/// activations of one layer).
struct MemoryPrediction {
  std::int64_t weights = 0, masters = 0, moments = 0, gradients = 0, reference = 0;
  std::int64_t activations = 0, logits = 0;
  std::int64_t merged = 0, cache = 0, sampling = 0;
};

}  // namespace rapo
