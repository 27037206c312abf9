#include "model/optimizer.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "files/write.h"
#include "model/weights.h"
#include "ops/philox.h"

namespace rapo {

Optimizer::Optimizer(const ops::Backend& ops, const FlatLayout& layout, const PolicyOptions& options,
                     at::Tensor master, at::Tensor weights, const Shards* shards, World* world)
    : ops_(ops),
      layout_(layout),
      shards_(shards),
      world_(world),
      params_(options.adamw),
      max_grad_norm_(options.max_grad_norm),
      seed_(options.seed),
      master_(std::move(master)),
      weights_(std::move(weights)) {
  const std::int64_t size = shards ? shards->shard_size() : layout.flat_size();
  m_ = at::zeros({size}, master_.options().dtype(ops::scalar_type(options.state_dtype)));
  v_ = at::zeros_like(m_);
  if (!shards) slices_.push_back({0, 0, size, {}});
  if (shards) {
    for (const Shards::Piece& piece : shards->pieces())
      slices_.push_back({shards->own_begin(piece), piece.shard, shards->own_size(piece), {}});
  }
  const auto& entries = layout.entries();
  std::size_t first = 0;  // slices and tensors are in the same order
  for (Slice& slice : slices_) {
    const std::int64_t end = slice.flat + slice.size;
    while (first < entries.size() && entries[first].offset + entries[first].size <= slice.flat) ++first;
    for (std::size_t e = first; e < entries.size() && entries[e].offset < end; ++e) {
      const std::int64_t from = std::max(entries[e].offset, slice.flat);
      const std::int64_t count = std::min(entries[e].offset + entries[e].size, end) - from;
      const std::int64_t in_slice = from - slice.flat;
      if (count <= 0) continue;
      slice.ranges.push_back({in_slice, count, entries[e].is_matrix()});
      overlaps_.push_back({e, from - entries[e].offset, from, slice.shard + in_slice, count});
    }
  }
}

std::vector<Optimizer::Kind> Optimizer::kinds() const {
  const bool is_shard = shards_ != nullptr;
  return {
      {"master.", master_, !has_all_masters()}, {"exp_avg.", m_, is_shard}, {"exp_avg_sq.", v_, is_shard}};
}

at::Tensor Optimizer::master_of(std::int64_t flat, std::int64_t shard, std::int64_t size) const {
  return master_.narrow(0, has_all_masters() ? flat : shard, size);
}

StepResult Optimizer::step(at::Tensor& grad, bool is_shard, double norm, double learning_rate,
                           const Control& control) {
  StepResult result;
  result.grad_norm = norm;
  if (!std::isfinite(norm)) {
    result.skipped = true;
    return result;
  }
  ++steps_;
  const double scale = norm > max_grad_norm_ ? max_grad_norm_ / norm : 1;
  const std::uint64_t key = philox_key(seed_, static_cast<std::uint64_t>(steps_), kMomentRounding);
  for (const Slice& slice : slices_) {
    if (slice.ranges.empty()) continue;
    const auto at = [&](const at::Tensor& flat, std::int64_t begin) {
      return flat.narrow(0, begin, slice.size);
    };
    ops::AdamWBuffers buffers{master_of(slice.flat, slice.shard, slice.size),
                              at(grad, is_shard ? slice.shard : slice.flat), at(m_, slice.shard),
                              at(v_, slice.shard)};
    ops_.adamw(buffers, slice.ranges, {params_, learning_rate, scale, steps_, key}, control);
  }
  publish(control);
  return result;
}

std::string Optimizer::step_name(const char* what) const {
  return "optimizer step " + std::to_string(steps_) + ", " + what;
}

void Optimizer::publish(const Control& control) {
  if (!shards_) {
    if (!masters_are_weights()) ops_.round_weights(master_, weights_);
    return;
  }
  exchange(
      step_name("weights"), weights_.scalar_type(),
      [&](const Shards::Piece& piece, at::Tensor& to) {
        const auto own = master_of(shards_->own_begin(piece), piece.shard, to.numel());
        if (masters_are_weights()) {
          to.copy_(own);
        } else {
          ops_.round_weights(own, to);
        }
      },
      [&](const Shards::Piece& piece, const at::Tensor& all) {
        weights_.narrow(0, piece.begin, piece.size).copy_(all);
      },
      control);
}

void Optimizer::exchange(const std::string& what, at::ScalarType type,
                         const std::function<void(const Shards::Piece&, at::Tensor& to)>& own,
                         const std::function<void(const Shards::Piece&, const at::Tensor& all)>& use,
                         const Control& control) const {
  const auto options = m_.options().dtype(type);
  std::unique_ptr<Exchange> running;
  const Shards::Piece* piece = nullptr;
  at::Tensor all;
  const auto finish = [&] {
    if (!running) return;
    running->wait(control);
    use(*piece, all.narrow(0, 0, piece->size));
  };
  // Two at a time: one is on the way while the other is used.
  for (const Shards::Piece& next : shards_->pieces()) {
    auto part = at::zeros({next.slice}, options);
    const std::int64_t size = shards_->own_size(next);
    if (size > 0) {
      auto to = part.narrow(0, 0, size);
      own(next, to);
    }
    auto parts = at::empty({shards_->ranks() * next.slice}, options);
    auto exchange = world_->gather_parts(what, part, parts, control);
    finish();
    running = std::move(exchange);
    piece = &next;
    all = std::move(parts);
  }
  finish();
}

void Optimizer::each_master(const std::function<void(std::int64_t begin, const at::Tensor& masters)>& f,
                            const Control& control) const {
  if (has_all_masters()) return f(0, master_);
  exchange(
      step_name("masters"), at::kFloat,
      [&](const Shards::Piece& piece, at::Tensor& to) {
        to.copy_(master_of(shards_->own_begin(piece), piece.shard, to.numel()));
      },
      [&](const Shards::Piece& piece, const at::Tensor& all) { f(piece.begin, all); }, control);
}

void Optimizer::save(const std::string& file, const Control& control) const {
  const std::map<std::string, std::string> metadata{{"format", "rapo-state-1"},
                                                    {"steps", std::to_string(steps_)}};
  std::vector<StoredTensor> tensors;
  std::vector<at::Tensor> held;  // owns the memory that is written
  std::vector<FilePart> parts;
  for (const auto& [prefix, flat, is_shard] : kinds()) {
    held.push_back(flat.to(at::kCPU));
    if (!shards_) {
      for (auto& tensor : layout_.stored(held.back(), prefix)) tensors.push_back(std::move(tensor));
      continue;
    }
    const std::size_t first = tensors.size();
    for (auto& tensor : layout_.described(prefix)) tensors.push_back(std::move(tensor));
    for (const Overlap& o : overlaps_) {
      const float* data = held.back().data_ptr<float>() + (is_shard ? o.shard : o.flat);
      parts.push_back({first + o.entry, static_cast<std::size_t>(o.in_entry) * sizeof(float),
                       reinterpret_cast<const std::byte*>(data),
                       static_cast<std::size_t>(o.size) * sizeof(float)});
    }
  }
  if (!shards_) return write_safetensors(file, tensors, metadata, control);
  write_safetensors_parts(file, tensors, metadata, parts, control);
}

void Optimizer::load(const std::string& file, Control& control) {
  const SafetensorsFile state(file);
  const auto fail = [&](const std::string& message) {
    throw Error(ErrorCode::kFormat, file + ": " + message);
  };
  const auto format = state.metadata().find("format"), steps = state.metadata().find("steps");
  if (format == state.metadata().end() || format->second != "rapo-state-1" ||
      steps == state.metadata().end()) {
    fail("not a state file of rapo (metadata format and steps)");
  }
  if (steps->second.empty() || steps->second.size() > 15 ||
      steps->second.find_first_not_of("0123456789") != std::string::npos) {
    fail("metadata steps is \"" + steps->second + "\", not a number");
  }
  const char* hint = ": optimizer.stateDtype says what type the moments have";
  std::vector<std::vector<const StoredTensor*>> stored;  // of each kind, by entry
  for (const Kind& kind : kinds()) {
    stored.emplace_back();
    for (StoredTensor wanted : layout_.described(kind.prefix)) {
      wanted.dtype = ops::stored_name(ops::dtype_of(kind.flat));
      const auto found = state.tensors().find(wanted.name);
      if (found == state.tensors().end()) fail("tensor \"" + wanted.name + "\" is missing");
      if (found->second.dtype != wanted.dtype || found->second.shape != wanted.shape) {
        fail("tensor \"" + wanted.name + "\" is " + found->second.dtype + " " +
             show_shape(found->second.shape) + ", expected " + wanted.dtype + " " + show_shape(wanted.shape) +
             (found->second.shape == wanted.shape ? hint : ""));
      }
      stored.back().push_back(&found->second);
    }
  }
  if (3 * layout_.entries().size() != state.tensors().size())
    fail("holds tensors that this model does not have");

  const auto copy = [&](const StoredTensor& from, at::ScalarType type, std::int64_t begin,
                        const at::Tensor& to) {
    constexpr std::int64_t kMost = std::int64_t{1} << 22;  // bounds the memory of the copy
    for (std::int64_t at = 0; at < to.numel(); at += kMost) {
      control.check();
      // A tensor of the file need not begin at a multiple of 4 bytes.
      auto values = at::empty({std::min(kMost, to.numel() - at)}, at::TensorOptions(type));
      std::memcpy(values.data_ptr(), from.data + static_cast<std::size_t>(begin + at) * values.element_size(),
                  values.nbytes());
      to.narrow(0, at, values.numel()).copy_(values);
      control.done += values.numel();
    }
  };
  const auto all = kinds();
  std::int64_t own = 0;
  for (const Overlap& o : overlaps_) own += o.size;
  control.committed = true;
  for (const Kind& kind : all) control.total += !shards_ || kind.is_shard ? own : 0;
  if (shards_) control.total += layout_.parameters();
  for (std::size_t k = 0; k < all.size(); ++k) {
    // Weights that are masters are needed whole: below.
    if (shards_ && !all[k].is_shard) continue;
    for (const Overlap& o : overlaps_)
      copy(*stored[k][o.entry], all[k].flat.scalar_type(), o.in_entry,
           all[k].flat.narrow(0, all[k].is_shard ? o.shard : o.flat, o.size));
  }
  if (shards_) {
    const auto& entries = layout_.entries();
    for (std::size_t e = 0; e < entries.size(); ++e)
      copy(*stored[0][e], at::kFloat, 0, weights_.narrow(0, entries[e].offset, entries[e].size));
  }
  steps_ = std::stoll(steps->second);
  if (!shards_ && !masters_are_weights()) ops_.round_weights(master_, weights_);
}

}  // namespace rapo
