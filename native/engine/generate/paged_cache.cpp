// A key/value cache for the CPU, in pages of kCacheBlock positions of all layers. Sequences take pages as
// they grow; completions of one prompt share its whole pages.
#include <algorithm>
#include <cstring>
#include <unordered_map>

#include "generate/cache.h"
#include "generate/pages.h"
#include "model/memory.h"
#include "ops/cpu/ops.h"

namespace rapo {
namespace {

constexpr std::int64_t kChunkBytes = std::int64_t{16} << 20;  // the cache grows by this many bytes

class PagedCache : public Cache {
 public:
  PagedCache(Model& model, const SamplingParams& sampling, const CacheDemand& demand)
      : model_(model),
        sampling_(sampling),
        layer_size_(2 * model.net.config().kv_size() * loops::kCacheBlock),
        page_bytes_(layer_size_ * model.net.config().layers * model.element_size()),
        pages_(layer_size_ * model.net.config().layers, std::max<std::int64_t>(1, kChunkBytes / page_bytes_),
               model.flat.options()) {
    limit_ = sampling.max_batch > 0 ? sampling.max_batch
                                    : running_limit(model.net.config(), model.net.layout().parameters(),
                                                    model.element_size(), demand.positions);
    limit_ = std::min(limit_, demand.completions);
    page_limit_ = sampling.max_batch > 0 ? INT64_MAX : demand.bytes / page_bytes_;
  }

  std::int64_t limit() const override { return limit_; }
  std::int64_t units_for(std::int64_t positions) const override {
    return (positions + loops::kCacheBlock - 1) / loops::kCacheBlock;
  }
  std::int64_t units_used() const override { return pages_.used(); }
  std::int64_t unit_limit() const override { return page_limit_; }

  std::vector<Id> take(const KeyValues& layers, const std::vector<Span>& prompts) override {
    std::vector<Id> ids;
    ids.reserve(prompts.size());
    for (const auto& [begin, length] : prompts) ids.push_back(take_one(layers, begin, length));
    return ids;
  }

  /// The prompt's whole pages are shared. Its last page, which the sequence will fill, is copied.
  Id branch(Id prompt, bool is_last) override {
    if (is_last) return prompt;
    Held sequence = held_.at(prompt);
    const bool is_whole = sequence.length % loops::kCacheBlock == 0;
    for (std::size_t i = 0; i + (is_whole ? 0 : 1) < sequence.pages.size(); ++i)
      pages_.share(sequence.pages[i]);
    if (!is_whole) {
      void* copy = pages_.take();
      std::memcpy(copy, sequence.pages.back(), pages_.bytes());
      sequence.pages.back() = copy;
    }
    return add(std::move(sequence));
  }

  at::Tensor save(Id sequence, std::int64_t length) override {
    const auto& pages = held_.at(sequence).pages;
    const std::int64_t count = units_for(length);
    auto saved = at::empty({count, static_cast<std::int64_t>(pages_.bytes()) / model_.element_size()},
                           model_.flat.options());
    auto* to = static_cast<std::byte*>(saved.data_ptr());
    for (std::int64_t i = 0; i < count; ++i) {
      std::memcpy(to + static_cast<std::size_t>(i) * pages_.bytes(), pages[static_cast<std::size_t>(i)],
                  pages_.bytes());
    }
    return saved;
  }

  Id restore(const at::Tensor& saved, std::int64_t length) override {
    Held prompt;
    prompt.length = length;
    const auto* from = static_cast<const std::byte*>(saved.data_ptr());
    for (std::int64_t i = 0; i < units_for(length); ++i) {
      prompt.pages.push_back(pages_.take());
      std::memcpy(prompt.pages.back(), from + static_cast<std::size_t>(i) * pages_.bytes(), pages_.bytes());
    }
    return add(std::move(prompt));
  }

  void drop(const std::vector<Id>& sequences) override {
    for (const Id id : sequences) {
      for (void* page : held_.at(id).pages) pages_.drop(page);
      held_.erase(id);
    }
  }

  std::vector<Choice> step(const std::vector<Row>& rows) override {
    std::vector<std::int32_t> ids;
    std::vector<const std::vector<void*>*> blocks;
    std::vector<std::int64_t> positions;
    std::vector<double> uniforms;
    for (const Row& row : rows) {
      auto& pages = held_.at(row.sequence).pages;
      if (row.length % loops::kCacheBlock == 0) pages.push_back(pages_.take());
      ids.push_back(row.token);
      blocks.push_back(&pages);
      positions.push_back(row.length);
      uniforms.push_back(row.u);
    }
    Qwen2& net = model_.net;
    const auto& embed = model_.weights.embed;
    const auto& rope = net.rope(*std::max_element(positions.begin(), positions.end()) + 1, embed);
    const auto hidden = net.decode(model_.weights, model_.for_generation(),
                                   net.ops().embed(embed, ids.data(), static_cast<std::int64_t>(ids.size())),
                                   [&](std::int64_t layer, const at::Tensor& qkv) {
                                     return ops::cpu::decode_attention(net.head_shape(), blocks, positions,
                                                                       rope, qkv, layer * layer_size_);
                                   });
    return sample(net.ops().linear(hidden, model_.for_generation().head, {}), uniforms);
  }

  std::vector<Choice> sample(const at::Tensor& logits, const std::vector<double>& uniforms) override {
    return choices_of(sample_cpu(logits, tensor_of(uniforms), sampling_));
  }

 private:
  struct Held {
    std::int64_t length = 0;  // tokens of a prompt
    std::vector<void*> pages;
  };

  Id take_one(const KeyValues& layers, std::int64_t begin, std::int64_t length) {
    Held prompt;
    prompt.length = length;
    for (std::int64_t i = units_for(length); i > 0; --i) prompt.pages.push_back(pages_.take());
    const std::size_t bytes = pages_.bytes() / layers.size();
    for (std::size_t layer = 0; layer < layers.size(); ++layer) {
      const auto blocks =
          ops::cpu::cache_blocks(model_.net.head_shape(), layers[layer].narrow(0, begin, length));
      const auto* from = static_cast<const std::byte*>(blocks.data_ptr());
      for (std::size_t i = 0; i < prompt.pages.size(); ++i) {
        std::memcpy(static_cast<std::byte*>(prompt.pages[i]) + layer * bytes, from + i * bytes, bytes);
      }
    }
    return add(std::move(prompt));
  }

  Id add(Held&& held) {
    held_.emplace(next_, std::move(held));
    return next_++;
  }

  Model& model_;
  const SamplingParams& sampling_;
  std::int64_t layer_size_;  // elements of one layer in a page; the layers lie one after another
  std::int64_t page_bytes_;
  std::int64_t limit_ = 0, page_limit_ = 0;
  CachePages pages_;
  std::unordered_map<Id, Held> held_;  // by prompt and by sequence
  Id next_ = 0;
};

}  // namespace

std::unique_ptr<Cache> make_paged_cache(Model& model, const SamplingParams& sampling,
                                        const CacheDemand& demand) {
  return std::make_unique<PagedCache>(model, sampling, demand);
}

}  // namespace rapo
