// What config.json says of a model. lib/model/config.ts reads the file and checks every field.
#pragma once

#include <cstdint>
#include <string>

namespace rapo {

/// The families of models: X(enumerator, model_type). layout.cpp has a table of each family's tensors.
#define RAPO_ARCHITECTURES(X) X(kQwen2, "qwen2") X(kQwen3, "qwen3") X(kLlama, "llama")

enum class Architecture : std::uint8_t {
#define RAPO_ENTRY(architecture, name) architecture,
  RAPO_ARCHITECTURES(RAPO_ENTRY)
#undef RAPO_ENTRY
};

/// All sizes are from 1 to 2^31, so that a product of two fits 64 bits.
struct ModelConfig {
  Architecture architecture = Architecture::kQwen2;
  std::int64_t vocab_size = 0, hidden_size = 0, intermediate_size = 0, layers = 0, heads = 0, kv_heads = 0;
  std::int64_t head_dim = 0, max_position_embeddings = 0;
  double rms_norm_eps = 0, rope_theta = 0, initializer_range = 0;
  bool tied_embeddings = false;

  std::int64_t q_size() const { return heads * head_dim; }
  std::int64_t kv_size() const { return kv_heads * head_dim; }
  std::int64_t qkv_size() const { return q_size() + 2 * kv_size(); }
};

/// A model's directory and its config.json.
struct ModelSource {
  std::string dir;  // empty: no model
  ModelConfig config;
};

}  // namespace rapo
