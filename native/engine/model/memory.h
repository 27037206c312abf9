// The sizes of chunks and caches, and a prediction, made from them, of the memory that a run needs.
#pragma once

#include <cstdint>

#include "model/config.h"
#include "types.h"

namespace rapo {

/// Elements that a layer keeps per token for its backward pass.
std::int64_t layer_activations(const ModelConfig& c);

/// Tokens that go through the trunk at once in training; a longer sequence is a chunk of its own. On the CPU,
/// a small model's activations should fit into the processor's caches. A large model's weights are read once
/// per chunk, so that its chunks are as large as 2 GB of activations allow. On other devices a chunk takes up
/// to 8 GB.
std::int64_t train_chunk_tokens(const ModelConfig& c, std::int64_t parameters, std::int64_t width,
                                bool recompute, bool on_cpu);

/// Prompt tokens computed at once when completions are started.
std::int64_t prefill_tokens(const ModelConfig& c, std::int64_t width);

/// Rows in a chunk of the fused head. The chunk's logits take about 64 MB on the CPU. On other devices they
/// take 1 GB, since each chunk reads and writes the whole gradient of the head's weight.
std::int64_t default_head_rows(std::int64_t vocab_size, std::int64_t element_size, bool on_cpu);

/// The number of completions that are decoded at once on the CPU, between 64 and 512. A step reads the
/// weights and the key/value cache. If the cache is several times as large as the weights, the time for
/// reading the weights hardly counts, and further completions would only push a small model's keys and values
/// out of the processor's caches.
std::int64_t running_limit(const ModelConfig& c, std::int64_t parameters, std::int64_t width,
                           std::int64_t positions);

/// The same number on other devices, at most 512: as many as fit into `bytes` with their keys and values and
/// the memory for sampling.
std::int64_t device_running_limit(const ModelConfig& c, std::int64_t width, std::int64_t positions,
                                  std::int64_t bytes);

/// Predicted from the configurations of the model and of options.reference.
MemoryPrediction predict_memory(const ModelConfig& config, const PolicyOptions& options,
                                const RunShape& shape);

}  // namespace rapo
