// How much of everything a policy holds: the sizes of chunks and caches, and from them what a run will need.
#pragma once

#include <cstdint>

#include "files/config.h"
#include "types.h"

namespace rapo {

/// Elements that a layer keeps of a token for its backward pass.
std::int64_t layer_activations(const ModelConfig& c);

/// Tokens taken through the trunk at once in training. What a small model keeps for its backward pass should
/// stay in the caches; for a large one the weights are the traffic, and a chunk must be worth reading them,
/// within 2 GB. On another device than the CPU: as many as 8 GB hold. A longer sequence is a chunk of its
/// own.
std::int64_t train_chunk_tokens(const ModelConfig& c, std::int64_t parameters, std::int64_t width,
                                bool recompute, bool on_cpu);

/// Prompt tokens computed at once when completions are started.
std::int64_t prefill_tokens(const ModelConfig& c, std::int64_t width);

/// Rows of a chunk of the fused head whose logits take about 64 MB; on another device than the CPU 1 GB,
/// since each chunk passes over the whole gradient of the head's weight.
std::int64_t default_head_rows(std::int64_t vocab_size, std::int64_t element_size, bool on_cpu);

/// Completions decoded at once: a decoding step reads the weights and the cache, so that a cache of some
/// times the weights' size pays for reading those; beyond that more only push a small model's cache out of
/// the processor's.
std::int64_t running_limit(const ModelConfig& c, std::int64_t parameters, std::int64_t width,
                           std::int64_t positions);

/// The same on another device: as many as `bytes` hold of keys, values and what sampling takes, 512 at most.
std::int64_t device_running_limit(const ModelConfig& c, std::int64_t width, std::int64_t positions,
                                  std::int64_t bytes);

/// From dir/config.json and the reference's; no weights are read. Throws as Policy::load does for a config.
MemoryPrediction predict_memory(const std::string& dir, const PolicyOptions& options, const RunShape& shape);

}  // namespace rapo
