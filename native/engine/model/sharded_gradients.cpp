#include "model/sharded_gradients.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

namespace rapo {
namespace {

/// Buffers: one for the embeddings; two for the layers in turn; one for the last section. A head of its own
/// takes the embeddings' buffer, which the pass needs only when the head is done.
constexpr std::size_t kEmbed = 0, kLayers = 1, kLast = 3;

std::size_t index_of(std::int64_t section, std::int64_t sections, bool tied) {
  if (section == 0) return kEmbed;
  if (section < sections - 1) return kLayers + static_cast<std::size_t>(section % 2);
  return tied ? kLast : kEmbed;
}

std::vector<std::int64_t> buffer_sizes(const Layout& layout, const Shards& shards, bool tied) {
  std::vector<std::int64_t> sizes(kLast + 1);
  const auto sections = static_cast<std::int64_t>(layout.sections().size());
  for (std::int64_t s = 0; s < sections; ++s) {
    auto& size = sizes[index_of(s, sections, tied)];
    size = std::max(size, shards.section_buffer(s));
  }
  return sizes;
}

}  // namespace

ShardedGradients::ShardedGradients(const Layout& layout, const Shards& shards, World& world,
                                   at::Device device, Gradients& grads)
    : shards_(shards),
      world_(world),
      sections_(static_cast<std::int64_t>(layout.sections().size())),
      tied_(layout.is_tied()),
      is_begun_(layout.sections().size()) {
  const auto options = at::TensorOptions(at::kFloat).device(device);
  shard_ = at::zeros({shards.shard_size()}, options);
  for (const std::int64_t size : buffer_sizes(layout, shards, tied_))
    buffers_.push_back({at::zeros({size}, options), {}});
  std::vector<at::Tensor> views;
  for (std::int64_t s = 0; s < sections_; ++s) {
    const auto& section = layout.sections()[static_cast<std::size_t>(s)];
    views.push_back(buffer_of(s).flat.narrow(0, 0, section.size));
    section_begins_.push_back(section.begin);
  }
  grads.weights = layout.map(views);
  grads.on_begin = [this](std::int64_t section) { begin(section); };
  grads.on_end = [this](std::int64_t section) { end(section); };
}

std::int64_t ShardedGradients::elements(const Layout& layout, const Shards& shards) {
  std::int64_t all = shards.shard_size();
  // Each buffer, and this rank's parts of the buffer's sum while they are received.
  for (const std::int64_t size : buffer_sizes(layout, shards, layout.is_tied()))
    all += size + size / shards.ranks();
  return all;
}

void ShardedGradients::begin_pass(const std::string& what, const Control& control) {
  what_ = what;
  control_ = &control;
  next_ = sections_ - 1;
  std::fill(is_begun_.begin(), is_begun_.end(), false);
  begin(next_);
  if (tied_) begin(0);  // the head adds to it first
}

void ShardedGradients::end_pass() {
  while (next_ >= 0) end(next_);
}

at::Tensor& ShardedGradients::shard(const Control& control) {
  for (Buffer& buffer : buffers_) receive(buffer, control);
  return shard_;
}

void ShardedGradients::zero(const Control& control) { shard(control).zero_(); }

void ShardedGradients::begin(std::int64_t section) {
  const auto s = static_cast<std::size_t>(section);
  if (is_begun_[s]) return;
  Buffer& buffer = buffer_of(section);
  receive(buffer, *control_);
  buffer.flat.zero_();
  is_begun_[s] = true;
}

void ShardedGradients::end(std::int64_t section) {
  begin(section);
  Buffer& buffer = buffer_of(section);
  const std::int64_t first = section_begins_[static_cast<std::size_t>(section)];
  for (const Shards::Piece& piece : shards_.pieces()) {
    if (piece.section != section) continue;
    const auto all = buffer.flat.narrow(0, piece.begin - first, shards_.ranks() * piece.slice);
    auto own = at::empty({piece.slice}, shard_.options());
    auto exchange = world_.scatter_sum(what_, all, own, *control_);
    buffer.parts.push_back({&piece, std::move(own), std::move(exchange)});
  }
  next_ = section - 1;
}

void ShardedGradients::receive(Buffer& buffer, const Control& control) {
  for (Part& part : buffer.parts) {
    part.exchange->wait(control);
    shard_.narrow(0, part.piece->shard, part.piece->slice).add_(part.own);
  }
  buffer.parts.clear();
}

ShardedGradients::Buffer& ShardedGradients::buffer_of(std::int64_t section) {
  return buffers_[index_of(section, sections_, tied_)];
}

}  // namespace rapo
