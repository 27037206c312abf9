#include "model/memory.h"

#include <algorithm>

#include "kernels/dtypes.h"
#include "kernels/parallel.h"
#include "model/qwen2.h"
#include "model/sharded_gradients.h"
#include "model/shards.h"
#include "ops/cpu/loops.h"

namespace rapo {

std::int64_t layer_activations(const ModelConfig& c) {
  return 5 * c.hidden_size + c.qkv_size() + c.q_size() + 3 * c.intermediate_size;
}

std::int64_t train_chunk_tokens(const ModelConfig& c, std::int64_t parameters, std::int64_t width,
                                bool recompute, bool on_cpu) {
  constexpr std::int64_t kActivationBytes = std::int64_t{2} << 30, kDeviceBytes = std::int64_t{8} << 30;
  const std::int64_t layer = layer_activations(c);
  const std::int64_t kept = recompute ? c.layers * c.hidden_size + layer : c.layers * layer;
  if (!on_cpu) return std::max<std::int64_t>(512, kDeviceBytes / (kept * width));
  return std::max<std::int64_t>(
      512, std::min(8 * parameters / (c.layers * layer), kActivationBytes / (kept * width)));
}

std::int64_t prefill_tokens(const ModelConfig& c, std::int64_t width) {
  constexpr std::int64_t kMost = 8192, kBytes = std::int64_t{256} << 20;
  return std::clamp<std::int64_t>(kBytes / (layer_activations(c) * width), 512, kMost);
}

std::int64_t default_head_rows(std::int64_t vocab_size, std::int64_t element_size, bool on_cpu) {
  constexpr std::int64_t kChunkBytes = 64 << 20, kDeviceBytes = std::int64_t{1} << 30;
  return std::max<std::int64_t>(1, (on_cpu ? kChunkBytes : kDeviceBytes) / (vocab_size * element_size));
}

std::int64_t running_limit(const ModelConfig& c, std::int64_t parameters, std::int64_t width,
                           std::int64_t positions) {
  constexpr std::int64_t kCacheToWeights = 4, kLeast = 64, kMost = 512;
  const std::int64_t bytes = (positions + loops::kCacheBlock - 1) / loops::kCacheBlock * loops::kCacheBlock *
                             2 * c.kv_size() * c.layers * width;
  return std::clamp(kCacheToWeights * parameters * width / bytes, kLeast, kMost);
}

std::int64_t device_running_limit(const ModelConfig& c, std::int64_t width, std::int64_t positions,
                                  std::int64_t bytes) {
  constexpr std::int64_t kMost = 512;
  // For each row that is sampled: its keys and values, its logits, and four float32 copies of its logits.
  const std::int64_t row = positions * 2 * c.kv_size() * c.layers * width + c.vocab_size * (width + 16);
  return std::clamp<std::int64_t>(bytes / row, 1, kMost);
}

MemoryPrediction predict_memory(const ModelConfig& c, const PolicyOptions& options, const RunShape& shape) {
  const Layout layout(c);
  const auto width = static_cast<std::int64_t>(dtype_size(options.dtype));
  const std::int64_t all = layout.flat_size(), parameters = layout.parameters();
  const bool has_reference = !options.reference.dir.empty(), on_cpu = options.device == "cpu";
  MemoryPrediction m;
  m.weights = all * width;
  if (has_reference) m.reference = Layout(options.reference.config).flat_size() * width;
  if (options.reference_lora.r > 0)
    m.reference = AdapterLayout(c, options.reference_lora).flat_size() * width;
  std::int64_t trained = all, low = 0;  // low: what an adapter adds to the activations of a token
  if (options.lora.r > 0) {
    const AdapterLayout adapter(c, options.lora);
    trained = adapter.flat_size();
    if (options.merge_adapter) m.merged = adapter.adapted_size(c) * width;
    low = c.layers * options.lora.r * static_cast<std::int64_t>(options.lora.target_modules.size());
    m.weights += trained * width;
    m.masters = width == 4 ? 0 : trained * 4;
  }
  if (options.trainable) {
    m.masters = width == 4 ? 0 : trained * 4;
    m.moments = trained * 2 * static_cast<std::int64_t>(dtype_size(options.state_dtype));
    m.gradients = trained * 4;
    if (options.shard != Shard::kNone && options.lora.r == 0 && shape.processes > 1) {
      const Shards shards(layout, 0, shape.processes, Shards::piece_elements(on_cpu));
      if (width != 4) m.masters = shards.shard_size() * 4;
      m.moments = shards.shard_size() * 8;
      if (options.shard == Shard::kGradients) m.gradients = ShardedGradients::elements(layout, shards) * 4;
    }
  }
  const std::int64_t longest = shape.prompt_tokens + shape.max_new_tokens;
  const std::int64_t layer = layer_activations(c), wide = 2 * c.intermediate_size;
  if (options.trainable) {
    const std::int64_t tokens =
        std::min(std::max(train_chunk_tokens(c, parameters, width, options.recompute, on_cpu), longest),
                 shape.sequences * longest);
    const std::int64_t kept = options.recompute ? c.layers * c.hidden_size + layer : c.layers * layer + low;
    // In addition to what all layers keep: the gradients of one layer, and its widest factor packed for a
    // product.
    const std::int64_t passing = (4 * c.hidden_size + 3 * c.intermediate_size) * width + wide * 4;
    m.activations = tokens * (kept * width + passing);
    const std::int64_t rows = std::min(
        options.head_rows > 0 ? options.head_rows : default_head_rows(c.vocab_size, width, on_cpu), tokens);
    // Logits of both models, and the packed gradient.
    m.logits = rows * c.vocab_size * ((has_reference || options.base_reference ? 2 : 1) * width + 4);
  }
  const std::int64_t running = std::min(shape.max_batch > 0 ? shape.max_batch
                                        : on_cpu ? running_limit(c, parameters, width, longest)
                                                 : device_running_limit(c, width, longest, INT64_MAX),
                                        shape.sequences);
  const std::int64_t position = 2 * c.kv_size() * c.layers * width;
  m.cache = running * longest * position;
  if (shape.max_batch == 0 && on_cpu)
    m.cache = std::min(m.cache, std::max(options.cache_bytes, longest * position));
  const std::int64_t prefill = std::min(std::max(prefill_tokens(c, width), shape.prompt_tokens),
                                        shape.sequences * shape.prompt_tokens);
  m.sampling = running * c.vocab_size * (on_cpu ? width : width + 16) + kernel_threads() * c.vocab_size * 4 +
               std::max(prefill, running) * (layer * width + wide * 4) + prefill * position;
  return m;
}

}  // namespace rapo
