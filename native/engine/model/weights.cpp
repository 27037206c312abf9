#include "model/weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "ops/philox.h"

namespace rapo {
namespace {

/// The type of a stored tensor; Undefined if weights cannot have it.
at::ScalarType stored_type(const std::string& dtype) {
  if (dtype == "F32") return at::kFloat;
  if (dtype == "BF16") return at::kBFloat16;
  if (dtype == "F16") return at::kHalf;
  return dtype == "F64" ? at::kDouble : at::ScalarType::Undefined;
}

bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

/// Tensors that are ignored: rotary frequencies, which follow from rope_theta, and the heads that PPO and
/// reward models add.
bool is_ignored(const std::string& name) {
  return ends_with(name, "rotary_emb.inv_freq") || name.rfind("v_head.", 0) == 0 || name == "score.weight" ||
         name == "score.bias";
}

/// What the tensors that a plain model does not have say about the file; empty if they say nothing.
std::string explain(const std::map<std::string, StoredTensor>& tensors) {
  for (const auto& [name, tensor] : tensors) {
    if (name.find(".lora_") != std::string::npos || name.find(".base_layer.") != std::string::npos)
      return "; the file has LoRA weights (" + name +
             ") that are not merged into the model: merge_and_unload() of PEFT does it";
    for (const char* part : {".qweight", ".qzeros", ".weight_scale", ".weight_packed", ".absmax"}) {
      if (name.find(part) != std::string::npos)
        return "; the file is of a quantised model (" + name + "): take the model that it was made from";
    }
  }
  return "";
}

/// The same name with a prefix, as wrappers of torch write it.
std::string explain_missing(const std::map<std::string, StoredTensor>& tensors, const std::string& wanted) {
  std::string known = explain(tensors);
  if (!known.empty()) return known;
  const std::string bare = wanted.rfind("model.", 0) == 0 ? wanted.substr(6) : wanted;
  for (const auto& [name, tensor] : tensors) {
    if (name == bare || ends_with(name, "." + bare)) return "; the file calls it \"" + name + "\"";
  }
  return "";
}

}  // namespace

std::string show_shape(const std::vector<std::int64_t>& shape) {
  std::string text = "[";
  for (const auto size : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

void copy_stored(const StoredTensor& from, const std::string& file, at::Tensor& to) {
  const auto type = stored_type(from.dtype);
  if (type == at::ScalarType::Undefined) {
    throw Error(ErrorCode::kUnsupported,
                file + ": tensor \"" + from.name + "\" has the dtype " + from.dtype +
                    ", as quantised models have; F64, F32, BF16 and F16 are supported");
  }
  auto source = at::from_blob(const_cast<std::byte*>(from.data), {to.numel()}, at::TensorOptions(type));
  if (reinterpret_cast<std::uintptr_t>(from.data) % source.element_size() != 0) {
    source = at::empty({to.numel()}, type);
    std::memcpy(source.data_ptr(), from.data, from.bytes);
  }
  to.copy_(source);
}

Checkpoint open_weights(const ModelSource& model, const Layout& layout, std::vector<std::string>& ignored) {
  Checkpoint checkpoint(model.dir);
  const auto& tensors = checkpoint.tensors();
  const auto what = [&](const std::string& name) {
    return checkpoint.file_of(name) + ": tensor \"" + name + "\"";
  };
  for (const Layout::Entry& entry : layout.entries()) {
    const auto found = tensors.find(entry.name);
    if (found == tensors.end()) {
      throw Error(ErrorCode::kFormat,
                  what(entry.name) + " is missing" + explain_missing(tensors, entry.name));
    }
    const StoredTensor& tensor = found->second;
    if (stored_type(tensor.dtype) == at::ScalarType::Undefined) {
      throw Error(ErrorCode::kUnsupported,
                  what(entry.name) + " has the dtype " + tensor.dtype +
                      ", as quantised models have; F64, F32, BF16 and F16 are supported");
    }
    if (tensor.shape != entry.shape) {
      throw Error(ErrorCode::kFormat, what(entry.name) + " has the shape " + show_shape(tensor.shape) +
                                          ", config.json asks for " + show_shape(entry.shape));
    }
  }
  if (tensors.size() == layout.entries().size()) return checkpoint;
  for (const auto& [name, tensor] : tensors) {
    bool known = false;
    for (const Layout::Entry& entry : layout.entries()) known = known || entry.name == name;
    if (known) continue;
    if (is_ignored(name)) {
      ignored.push_back(checkpoint.file_of(name) + ": " + name);
      continue;
    }
    if (!model.config.tied_embeddings || name != "lm_head.weight") {
      throw Error(ErrorCode::kFormat,
                  what(name) + " does not belong to the model that config.json describes" + explain(tensors));
    }
    // Some writers store a tied head twice. If the two differ, transformers does not tie them, and the model
    // is another one.
    const StoredTensor& embed = tensors.at("model.embed_tokens.weight");
    if (tensor.dtype != embed.dtype || tensor.shape != embed.shape ||
        std::memcmp(tensor.data, embed.data, embed.bytes) != 0) {
      throw Error(ErrorCode::kFormat,
                  what(name) + " differs from model.embed_tokens.weight, though config.json says " +
                      "tie_word_embeddings");
    }
  }
  return checkpoint;
}

void read_weights(const Checkpoint& checkpoint, const Layout& layout, at::Tensor& flat, Control& control) {
  constexpr std::int64_t kPart = std::int64_t{1} << 23;  // an embedding may be a third of a model
  for (const Layout::Entry& entry : layout.entries()) {
    const StoredTensor& from = checkpoint.tensors().at(entry.name);
    const std::size_t width = from.bytes / static_cast<std::size_t>(entry.size);
    for (std::int64_t begin = 0; begin < entry.size; begin += kPart) {
      control.check();
      const std::int64_t count = std::min(kPart, entry.size - begin);
      StoredTensor part = from;
      part.data = from.data + static_cast<std::size_t>(begin) * width;
      part.bytes = static_cast<std::size_t>(count) * width;
      auto to = flat.narrow(0, entry.offset + begin, count);
      copy_stored(part, checkpoint.file_of(entry.name), to);
      control.done += count;
    }
    checkpoint.release(from);
  }
}

void read_shard(const Checkpoint& checkpoint, const Layout& layout, const Shards& shards, at::Tensor& shard,
                const Control& control) {
  for (const Layout::Entry& entry : layout.entries()) {
    const StoredTensor& whole = checkpoint.tensors().at(entry.name);
    for (const Shards::Piece& piece : shards.pieces()) {
      const std::int64_t own = shards.own_begin(piece), from = std::max(own, entry.offset);
      const std::int64_t count = std::min(own + shards.own_size(piece), entry.offset + entry.size) - from;
      if (count <= 0) continue;
      control.check();
      StoredTensor part = whole;
      const std::size_t width = width_of(whole.dtype);
      part.data += static_cast<std::size_t>(from - entry.offset) * width;
      part.bytes = static_cast<std::size_t>(count) * width;
      auto to = shard.narrow(0, piece.shard + from - own, count);
      copy_stored(part, checkpoint.file_of(entry.name), to);
    }
    checkpoint.release(whole);
  }
}

at::Tensor random_weights(const ModelConfig& config, const Layout& layout, std::uint64_t seed,
                          const Control& control) {
  auto flat = at::zeros({layout.flat_size()}, at::kFloat);
  auto* data = flat.data_ptr<float>();
  for (std::size_t e = 0; e < layout.entries().size(); ++e) {
    control.check();
    const Layout::Entry& entry = layout.entries()[e];
    const bool is_norm = entry.name.find("norm.weight") != std::string::npos;
    ops::for_ranges(entry.size, 65536, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        float& x = data[entry.offset + i];
        if (is_norm) {
          x = 1;
        } else if (entry.is_matrix()) {  // Box-Muller; 1 - u is never 0
          const auto words = philox(seed, e, static_cast<std::uint64_t>(i));
          const double u = (static_cast<double>(words[0]) + 0.5) * 0x1.0p-32;
          const double angle = static_cast<double>(words[1]) * 0x1.0p-32 * 6.283185307179586;
          x = static_cast<float>(config.initializer_range * std::sqrt(-2 * std::log(u)) * std::cos(angle));
        }
      }
    });
  }
  return flat;
}

Model::Model(const ModelSource& source, DType dtype, at::Device device, const ops::Backend& ops,
             Control& control)
    : net(source.config, ops), checkpoint(open_weights(source, net.layout(), ignored)) {
  flat = at::zeros({net.layout().flat_size()}, at::TensorOptions(ops::scalar_type(dtype)).device(device));
  weights = net.layout().map(flat);
  read_weights(checkpoint, net.layout(), flat, control);
  base();
}

const ReadyWeights& Model::base() {
  if (!base_) base_ = std::make_unique<ReadyWeights>(net.ops(), weights);
  return *base_;
}

const ReadyWeights& Model::ready() {
  if (!adapter) return base();
  if (!adapted_) {
    adapted_ = std::make_unique<ReadyWeights>(base());
    adapted_->add(net.ops(), adapter->tensors, adapter->scaling);
  }
  return *adapted_;
}

const ReadyWeights& Model::for_generation() {
  if (!adapter || !merges) return ready();
  if (!merged_) {
    const std::uint64_t key = philox_key(seed, static_cast<std::uint64_t>(steps_), kMergeRounding);
    merged_ = std::make_unique<ReadyWeights>(base());
    merged_->merge(net.ops(), weights, *adapter, key);
  }
  return *merged_;
}

void Model::changed(std::int64_t steps) {
  steps_ = steps;
  adapted_.reset();
  drop_merged();
  if (!adapter) base_.reset();
}

void Model::mix_in(std::int64_t begin, const at::Tensor& other, double share) {
  constexpr std::int64_t kChunk = std::int64_t{1} << 24;  // bounds the memory of the float32 copies
  for (std::int64_t at = 0; at < other.numel(); at += kChunk) {
    const std::int64_t count = std::min(kChunk, other.numel() - at);
    auto own = flat.narrow(0, begin + at, count);
    const auto from = other.narrow(0, at, count);
    if (share == 1) {
      own.copy_(from);
      continue;
    }
    auto mixed = own.to(at::kFloat, /*non_blocking=*/false, /*copy=*/true);
    own.copy_(mixed.lerp_(from.to(at::kFloat), share));
  }
}

}  // namespace rapo
