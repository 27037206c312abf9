// config.json of a Qwen2 model, checked.
#pragma once

#include <cstdint>
#include <string>

#include "files/json.h"

namespace rapo {

struct ModelConfig {
  std::int64_t vocab_size = 0, hidden_size = 0, intermediate_size = 0, layers = 0, heads = 0, kv_heads = 0;
  std::int64_t head_dim = 0, max_position_embeddings = 0;
  double rms_norm_eps = 0, rope_theta = 0, initializer_range = 0;
  bool tied_embeddings = false;
  std::string dtype;  // as written (float32, bfloat16, ...); float32 if absent
  Json json;          // the file, to be written back by save()

  std::int64_t q_size() const { return heads * head_dim; }
  std::int64_t kv_size() const { return kv_heads * head_dim; }
  std::int64_t qkv_size() const { return q_size() + 2 * kv_size(); }
};

/// Reads dir/config.json. Absent fields get the defaults that transformers has for Qwen2. Throws Error: kIo,
/// kFormat (a field of the wrong kind or range), kUnsupported (names the field and its value).
ModelConfig read_config(const std::string& dir);

/// The file's text with another dtype. The field keeps its spelling, dtype or torch_dtype.
std::string config_text(const ModelConfig& config, const std::string& dtype);

}  // namespace rapo
