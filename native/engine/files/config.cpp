#include "files/config.h"

#include <cmath>

#include "error.h"
#include "files/safetensors.h"

namespace rapo {
namespace {

constexpr std::size_t kMaxConfig = 16 << 20;
constexpr std::int64_t kMaxSize = std::int64_t{1} << 31;  // keeps every product of two sizes within 64 bits
constexpr std::int64_t kMaxLayers = 4096;                 // layers take memory before the weights are checked

class Reader {
 public:
  Reader(const Json& json, std::string path) : json_(json), path_(std::move(path)) {}

  [[noreturn]] void fail(ErrorCode code, const std::string& field, const std::string& message) const {
    throw Error(code, path_ + ": " + field + " " + message);
  }

  static std::string show(const Json& value) {
    std::string text = write_json(value);
    text.pop_back();
    return text;
  }

  /// null counts as absent, as None does in transformers.
  const Json* get(const Json& object, const char* field) const {
    const Json* value = object.find(field);
    return value && !value->is_null() ? value : nullptr;
  }
  const Json* get(const char* field) const { return get(json_, field); }

  std::int64_t size(const char* field, std::int64_t fallback = 0, std::int64_t most = kMaxSize) const {
    const Json* value = get(field);
    if (!value) {
      if (fallback > 0) return fallback;
      fail(ErrorCode::kFormat, field, "is missing");
    }
    std::int64_t number = 0;
    if (!value->to_integer(&number) || number < 1 || number > most) {
      fail(ErrorCode::kFormat, field,
           "must be an integer from 1 to " + (most == kMaxSize ? "2^31" : std::to_string(most)) + ", got " +
               show(*value));
    }
    return number;
  }

  double positive(const Json& object, const char* field, double fallback) const {
    const Json* value = get(object, field);
    if (!value) return fallback;
    const double number = value->type == Json::Type::kNumber ? value->to_double() : NAN;
    if (!(number > 0) || std::isinf(number)) {
      fail(ErrorCode::kFormat, field, "must be a number > 0, got " + show(*value));
    }
    return number;
  }
  double positive(const char* field, double fallback) const { return positive(json_, field, fallback); }

  bool flag(const char* field, bool fallback) const {
    const Json* value = get(field);
    if (!value) return fallback;
    if (value->type != Json::Type::kBool) {
      fail(ErrorCode::kFormat, field, "must be true or false, got " + show(*value));
    }
    return value->boolean;
  }

  /// Only rotary embeddings without scaling are supported. transformers reads the kind from rope_type, or
  /// from type if rope_type is absent.
  void only_unscaled(const Json& rope, const std::string& field) const {
    if (rope.type != Json::Type::kObject) {
      fail(ErrorCode::kFormat, field, "must be an object, got " + show(rope));
    }
    only(rope, "rope_type", "default", field + ".rope_type");
    only(rope, "type", "default", field + ".type");
  }

  /// If the field is present, its value must be this text.
  void only(const Json& object, const char* field, const std::string& supported,
            const std::string& shown) const {
    const Json* value = get(object, field);
    if (value && !(value->type == Json::Type::kString && value->text == supported)) {
      fail(ErrorCode::kUnsupported, shown,
           "is " + show(*value) + "; only \"" + supported + "\" is supported");
    }
  }

 private:
  const Json& json_;
  std::string path_;
};

}  // namespace

ModelConfig read_config(const std::string& dir) {
  const std::string path = dir + "/config.json";
  ModelConfig config;
  config.json = parse_json(read_text_file(path, kMaxConfig), path);
  const Json& json = config.json;
  if (json.type != Json::Type::kObject) throw Error(ErrorCode::kFormat, path + ": must hold an object");
  const Reader reader(json, path);

  const Json* architectures = reader.get("architectures");
  const Json* model_type = reader.get("model_type");
  if (!architectures && !model_type) reader.fail(ErrorCode::kFormat, "architectures", "is missing");
  if (architectures && !(architectures->type == Json::Type::kArray && architectures->items.size() == 1 &&
                         architectures->items[0].type == Json::Type::kString &&
                         architectures->items[0].text == "Qwen2ForCausalLM")) {
    reader.fail(ErrorCode::kUnsupported, "architectures",
                "is " + Reader::show(*architectures) + "; only [\"Qwen2ForCausalLM\"] is supported");
  }
  reader.only(json, "model_type", "qwen2", "model_type");
  reader.only(json, "hidden_act", "silu", "hidden_act");
  if (reader.flag("use_sliding_window", false)) {
    reader.fail(ErrorCode::kUnsupported, "use_sliding_window",
                "is true; sliding-window attention is not supported");
  }
  if (const Json* types = reader.get("layer_types")) {
    for (const Json& type : types->items) {
      if (type.text != "full_attention") {
        reader.fail(ErrorCode::kUnsupported, "layer_types",
                    "contains " + Reader::show(type) + "; only \"full_attention\" is supported");
      }
    }
  }
  if (const Json* scaling = reader.get("rope_scaling")) {
    // transformers accepts {"rope_type": "default"}, which scales nothing.
    reader.only_unscaled(*scaling, "rope_scaling");
    if (!reader.get(*scaling, "rope_type") && !reader.get(*scaling, "type")) {
      reader.fail(ErrorCode::kUnsupported, "rope_scaling",
                  "is " + Reader::show(*scaling) + "; not supported");
    }
  }

  config.vocab_size = reader.size("vocab_size");
  config.hidden_size = reader.size("hidden_size");
  config.intermediate_size = reader.size("intermediate_size");
  config.layers = reader.size("num_hidden_layers", 0, kMaxLayers);
  config.heads = reader.size("num_attention_heads");
  config.kv_heads = reader.size("num_key_value_heads", config.heads);
  config.max_position_embeddings = reader.size("max_position_embeddings", 32768);
  if (config.heads % config.kv_heads != 0) {
    reader.fail(ErrorCode::kFormat, "num_attention_heads",
                "must be a multiple of num_key_value_heads = " + std::to_string(config.kv_heads) + ", got " +
                    std::to_string(config.heads));
  }
  if (!reader.get("head_dim") && config.hidden_size % config.heads != 0) {
    reader.fail(ErrorCode::kFormat, "hidden_size",
                "must be a multiple of num_attention_heads = " + std::to_string(config.heads) + ", got " +
                    std::to_string(config.hidden_size));
  }
  config.head_dim = reader.size("head_dim", std::max<std::int64_t>(config.hidden_size / config.heads, 1));
  if (config.head_dim % 2 != 0) {
    reader.fail(ErrorCode::kFormat, "head_dim",
                "must be even for rotary embeddings, got " + std::to_string(config.head_dim));
  }
  config.rms_norm_eps = reader.positive("rms_norm_eps", 1e-6);
  config.initializer_range = reader.positive("initializer_range", 0.02);
  config.rope_theta = reader.positive("rope_theta", 10000);
  if (const Json* rope = reader.get("rope_parameters")) {
    reader.only_unscaled(*rope, "rope_parameters");
    for (const auto& [name, value] : rope->members) {
      if (value.type == Json::Type::kObject) {
        reader.fail(ErrorCode::kUnsupported, "rope_parameters." + name,
                    "is " + Reader::show(value) + "; parameters for each kind of layer are not supported");
      }
    }
    if (reader.positive(*rope, "partial_rotary_factor", 1) != 1) {
      reader.fail(ErrorCode::kUnsupported, "rope_parameters.partial_rotary_factor",
                  "is " + Reader::show(*rope->find("partial_rotary_factor")) + "; only 1 is supported");
    }
    config.rope_theta = reader.positive(*rope, "rope_theta", config.rope_theta);
  }
  config.tied_embeddings = reader.flag("tie_word_embeddings", false);
  const Json* dtype = reader.get("dtype");
  if (!dtype) dtype = reader.get("torch_dtype");  // the older spelling
  config.dtype = dtype && dtype->type == Json::Type::kString ? dtype->text : "float32";
  return config;
}

std::string config_text(const ModelConfig& config, const std::string& dtype) {
  Json json = config.json;
  const bool is_older = json.find("torch_dtype");
  if (is_older) json.set("torch_dtype", Json::string(dtype));
  if (!is_older || json.find("dtype")) json.set("dtype", Json::string(dtype));
  return write_json(json);
}

}  // namespace rapo
