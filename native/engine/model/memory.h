// Sizes of chunks and caches, and the memory that a run will need, computed from them.
#pragma once

#include <cstdint>

#include "model/config.h"
#include "types.h"

namespace rapo {

/// Elements that a layer keeps of a token for its backward pass.
std::int64_t layer_activations(const ModelConfig& c);

/// Tokens taken through the trunk at once in training. On the CPU, the activations that a small model keeps
/// for its backward pass should fit the processor's caches; a large model's weights are read once a chunk, so
/// that its chunks are as large as 2 GB of activations allow. On other devices a chunk takes up to 8 GB. A
/// longer sequence is a chunk of its own.
std::int64_t train_chunk_tokens(const ModelConfig& c, std::int64_t parameters, std::int64_t width,
                                bool recompute, bool on_cpu);

/// Prompt tokens computed at once when completions are started.
std::int64_t prefill_tokens(const ModelConfig& c, std::int64_t width);

/// Rows of a chunk of the fused head. Its logits take about 64 MB on the CPU, and 1 GB on other devices,
/// since each chunk reads and writes the whole gradient of the head's weight.
std::int64_t default_head_rows(std::int64_t vocab_size, std::int64_t element_size, bool on_cpu);

/// Completions decoded at once on the CPU. A decoding step reads the weights and the key/value cache. With a
/// cache of several times the weights' size, reading the weights hardly counts; more completions would only
/// push a small model's keys and values out of the processor's caches.
std::int64_t running_limit(const ModelConfig& c, std::int64_t parameters, std::int64_t width,
                           std::int64_t positions);

/// The same on other devices: as many as fit into `bytes` with their keys, values and the memory of sampling,
/// at most 512.
std::int64_t device_running_limit(const ModelConfig& c, std::int64_t width, std::int64_t positions,
                                  std::int64_t bytes);

/// Computed from the configurations of the model and of options.reference.
MemoryPrediction predict_memory(const ModelConfig& config, const PolicyOptions& options,
                                const RunShape& shape);

}  // namespace rapo
