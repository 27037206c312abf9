// read_config: any config.json is a model of positive sizes, or Error(kFormat or kUnsupported).
#include "engine/files/config.h"

#include "target.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Scratch scratch;
  scratch.write("config.json", data, size);
  try {
    const rapo::ModelConfig config = rapo::read_config(scratch.path());
    require(config.vocab_size > 0 && config.hidden_size > 0 && config.layers > 0, "sizes are positive");
    require(config.heads % config.kv_heads == 0 && config.head_dim % 2 == 0, "heads divide as they must");
    require(config.qkv_size() > 0 && config.rope_theta > 0 && config.rms_norm_eps > 0, "numbers are positive");
    const std::string text = rapo::config_text(config, "bfloat16");
    scratch.write("config.json", text.data(), text.size());
    require(rapo::read_config(scratch.path()).dtype == "bfloat16", "what save() writes reads back");
  } catch (const rapo::Error& error) {
    require(error.code() == rapo::ErrorCode::kFormat || error.code() == rapo::ErrorCode::kUnsupported,
            "the error is one of content");
  }
  return 0;
}
