#include "generate/generate.h"

#include <algorithm>
#include <cstring>

#include "generate/cache.h"
#include "generate/sampler.h"
#include "generate/transcript.h"
#include "model/memory.h"

namespace rapo {
namespace {

constexpr std::int64_t kChunkBytes = std::int64_t{16} << 20;  // the cache grows by

/// A prompt whose completions are being started: its keys and values, and the logits of its first new token.
struct Prefilled {
  std::int64_t prompt = -1, waiting = 0;  // completions not started
  std::int64_t length = 0;
  std::vector<void*> pages;
  at::Tensor logits;  // (1, V)
};

struct Running {
  std::int64_t completion = 0, length = 0;  // length: tokens in the cache
  std::int32_t token = 0;                   // sampled, not yet in the cache
  std::vector<void*> pages;
};

class Decoder {
 public:
  Decoder(Qwen2& model, const ModelTensors& weights, const ReadyWeights& ready, const PackedTokens& prompts,
          const SamplingParams& sampling, std::int64_t cache_bytes, Control& control)
      : model_(model),
        weights_(weights),
        ready_(ready),
        prompts_(prompts),
        sampling_(sampling),
        control_(control),
        transcript_(prompts, sampling, control),
        total_(transcript_.total()),
        page_size_(model.cache_block_size() * model.config().layers),
        pages_(page_size_,
               std::max<std::int64_t>(
                   1, kChunkBytes / (page_size_ * static_cast<std::int64_t>(weights.embed.element_size()))),
               weights.embed.options()) {
    std::int64_t longest = 0;
    for (std::int64_t c = 0; c < total_; c += sampling.n) {
      longest = std::max(longest, prompt_length(c / sampling.n));
    }
    const auto width = static_cast<std::int64_t>(weights.embed.element_size());
    limit_ = sampling.max_batch > 0 ? sampling.max_batch
                                    : running_limit(model.config(), model.layout().parameters(), width,
                                                    longest + sampling.max_new_tokens);
    limit_ = std::min(limit_, total_);
    page_limit_ = sampling.max_batch > 0 ? INT64_MAX : cache_bytes / (page_size_ * width);
  }

  Completions run() {
    // Starting is batched: a prefill costs a pass over the weights, so a few free places wait for company.
    const std::int64_t worth = std::max<std::int64_t>(1, limit_ / 8);
    while (waiting() > 0 || !running_.empty()) {
      control_.check();
      const std::int64_t count = waiting() > 0 ? startable() : 0;
      if (count >= worth || count == waiting() || running_.empty()) {
        if (count > 0) start(count);
      }
      if (!running_.empty()) step();
    }
    return transcript_.collect();
  }

 private:
  static std::int64_t pages_for(std::int64_t positions) {
    return (positions + loops::kCacheBlock - 1) / loops::kCacheBlock;
  }

  /// Completions that are to be started: those stopped for want of pages first, then the others in their
  /// order.
  std::int64_t waiting() const { return static_cast<std::int64_t>(stopped_.size()) + total_ - next_; }
  std::int64_t waiting_at(std::int64_t i) const {
    const auto stopped = static_cast<std::int64_t>(stopped_.size());
    return i < stopped ? stopped_[static_cast<std::size_t>(i)] : next_ + i - stopped;
  }

  /// How many of the waiting completions may join. Each is expected to become twice as long as the finished
  /// ones were on average (those that end first are short), so that the cache holds what the sequences use,
  /// not what they might; and where that was too little, as long as the longest so far, lest one be stopped
  /// again.
  std::int64_t startable() const {
    const std::int64_t free = std::min(limit_ - static_cast<std::int64_t>(running_.size()), waiting());
    if (page_limit_ == INT64_MAX || free <= 0) return free;
    std::int64_t expected = finished_ == 0 ? sampling_.max_new_tokens : 2 * finished_tokens_ / finished_ + 1;
    if (!stopped_.empty()) {
      for (const Running& r : running_) expected = std::max(expected, transcript_.length(r.completion) + 1);
    }
    expected = std::min(expected, sampling_.max_new_tokens);
    std::int64_t pages = 0;
    for (const Running& r : running_) {
      const std::int64_t made = transcript_.length(r.completion);
      pages += pages_for(r.length + std::max<std::int64_t>(1, expected - made));
    }
    for (std::int64_t i = 0; i < free; ++i) {
      pages += pages_for(prompt_length(waiting_at(i) / sampling_.n) + expected);
      if (pages > page_limit_) return std::max<std::int64_t>(i, running_.empty() ? 1 : 0);
    }
    return free;
  }

  std::int64_t prompt_length(std::int64_t p) const {
    return prompts_.offsets[static_cast<std::size_t>(p) + 1] - prompts_.offsets[static_cast<std::size_t>(p)];
  }

  /// Starts the first `count` of the waiting completions; their prompts are computed where they are not
  /// there.
  void start(std::int64_t count) {
    std::vector<std::int64_t> completions;
    completions.reserve(static_cast<std::size_t>(count));
    for (std::int64_t i = 0; i < count; ++i) completions.push_back(waiting_at(i));
    const std::int64_t again = std::min(count, static_cast<std::int64_t>(stopped_.size()));
    stopped_.erase(stopped_.begin(), stopped_.begin() + again);
    for (std::int64_t i = 0; i < again; ++i) {
      const std::int64_t p = completions[static_cast<std::size_t>(i)] / sampling_.n;
      const auto ready = find_prefilled(p);
      if (ready == prefilled_.end()) {
        prefill(p, p + 1, 1);
      } else {
        ++ready->waiting;
      }
    }
    const std::int64_t at_once =
        prefill_tokens(model_.config(), static_cast<std::int64_t>(weights_.embed.element_size()));
    std::vector<std::int64_t> missing;
    for (const std::int64_t end = next_ + count - again; next_ < end; ++next_) {
      const std::int64_t p = next_ / sampling_.n;
      if (p > last_prefilled_) missing.push_back(last_prefilled_ = p);
    }
    for (std::size_t i = 0; i < missing.size();) {
      std::size_t stop = i;
      for (std::int64_t tokens = 0; stop < missing.size(); ++stop) {
        tokens += prompt_length(missing[stop]);
        if (stop > i && tokens > at_once) break;
      }
      prefill(missing[i], missing[stop - 1] + 1, sampling_.n);
      i = stop;
    }
    std::vector<Running> fresh;
    std::vector<at::Tensor> rows;
    for (const std::int64_t completion : completions) {
      Running r;
      r.completion = completion;
      const auto ready = find_prefilled(completion / sampling_.n);
      r.length = ready->length;
      rows.push_back(ready->logits);
      if (--ready->waiting == 0) {
        r.pages = std::move(ready->pages);
        prefilled_.erase(ready);
      } else {
        r.pages = branch(*ready);
      }
      fresh.push_back(std::move(r));
    }
    sample(fresh, at::cat(rows));
    for (Running& r : fresh) settle(std::move(r));
  }

  std::vector<Prefilled>::iterator find_prefilled(std::int64_t prompt) {
    return std::find_if(prefilled_.begin(), prefilled_.end(),
                        [prompt](const Prefilled& p) { return p.prompt == prompt; });
  }

  /// A prompt's pages for one completion: whole ones are shared, the last one, which the completion goes on
  /// to fill, is copied.
  std::vector<void*> branch(const Prefilled& prompt) {
    std::vector<void*> pages = prompt.pages;
    const bool is_whole = prompt.length % loops::kCacheBlock == 0;
    for (std::size_t i = 0; i + (is_whole ? 0 : 1) < pages.size(); ++i) pages_.share(pages[i]);
    if (!is_whole) {
      pages.back() = pages_.take();
      std::memcpy(pages.back(), prompt.pages.back(), pages_.bytes());
    }
    return pages;
  }

  /// Prompts [first, end): keys, values and the logits behind the last token of each, for n completions.
  void prefill(std::int64_t first, std::int64_t end, std::int64_t n) {
    const auto input = plain_input(prompts_, static_cast<std::size_t>(first), static_cast<std::size_t>(end));
    std::vector<std::int64_t> last;
    last.reserve(input.families.size());
    for (const Family& prompt : input.families) last.push_back(prompt.begin + prompt.lengths[0] - 1);
    KeyValues kv;
    const auto hidden = model_.forward(weights_, ready_, input, control_, nullptr, &kv);
    const auto logits = ops::linear(ops::gather_rows(hidden, last.data(), end - first), ready_.head);
    for (std::int64_t p = first; p < end; ++p) {
      const Family& prompt = input.families[static_cast<std::size_t>(p - first)];
      Prefilled ready;
      ready.prompt = p;
      ready.waiting = n;
      ready.length = prompt.lengths[0];
      const std::int64_t count = pages_for(ready.length);
      for (std::int64_t i = 0; i < count; ++i) ready.pages.push_back(pages_.take());
      const std::size_t bytes = pages_.bytes() / kv.size();
      for (std::size_t layer = 0; layer < kv.size(); ++layer) {
        const auto blocks =
            ops::cache_blocks(model_.head_shape(), kv[layer].narrow(0, prompt.begin, ready.length));
        for (std::int64_t i = 0; i < count; ++i) {
          std::memcpy(static_cast<std::byte*>(ready.pages[static_cast<std::size_t>(i)]) + layer * bytes,
                      static_cast<const std::byte*>(blocks.data_ptr()) + static_cast<std::size_t>(i) * bytes,
                      bytes);
        }
      }
      ready.logits = logits.narrow(0, p - first, 1);
      prefilled_.push_back(std::move(ready));
    }
  }

  /// Stops the youngest sequences until the cache has a page for each other one that needs it. They are
  /// started again from their prompts, and come out the same.
  void make_room() {
    for (;;) {
      const auto needed = std::count_if(running_.begin(), running_.end(),
                                        [](const Running& r) { return r.length % loops::kCacheBlock == 0; });
      if (running_.size() == 1 || pages_.used() + needed <= page_limit_) return;
      for (void* page : running_.back().pages) pages_.drop(page);
      transcript_.restart(running_.back().completion);
      stopped_.insert(stopped_.begin(), running_.back().completion);
      running_.pop_back();
    }
  }

  /// One token for every running sequence.
  void step() {
    if (page_limit_ != INT64_MAX) make_room();
    std::vector<std::int32_t> ids;
    DecodeRows rows;
    for (Running& r : running_) {
      if (r.length % loops::kCacheBlock == 0) r.pages.push_back(pages_.take());
      ids.push_back(r.token);
      rows.blocks.push_back(&r.pages);
      rows.positions.push_back(r.length);
    }
    const auto logits = ops::linear(model_.decode(weights_, ready_, ids, rows), ready_.head);
    std::vector<Running> now;
    now.swap(running_);
    for (Running& r : now) ++r.length;
    sample(now, logits);
    for (Running& r : now) settle(std::move(r));
  }

  /// The next token of each row.
  void sample(std::vector<Running>& rows, const at::Tensor& logits) {
    if (logits.scalar_type() == at::kFloat) {
      sample_rows(rows, logits.data_ptr<float>());
    } else {
      sample_rows(rows, static_cast<const loops::BFloat16*>(logits.data_ptr()));
    }
  }

  template <class T>
  void sample_rows(std::vector<Running>& rows, const T* logits) {
    const std::int64_t vocab = model_.config().vocab_size;
    const std::int64_t grain = std::max<std::int64_t>(1, 16384 / vocab);
    ops::for_ranges(static_cast<std::int64_t>(rows.size()), grain, [&](std::int64_t begin, std::int64_t end) {
      static thread_local SamplerScratch scratch;
      for (std::int64_t i = begin; i < end; ++i) {
        Running& r = rows[static_cast<std::size_t>(i)];
        const double u = transcript_.next_uniform(r.completion);
        const Choice choice = choose(logits + i * vocab, vocab, sampling_, u, scratch);
        r.token = choice.token;
        transcript_.add(r.completion, choice.token, choice.logprob);
      }
    });
    control_.done += static_cast<std::int64_t>(rows.size());
  }

  /// Ends the sequence and frees its pages, or lets it run on.
  void settle(Running&& r) {
    if (transcript_.ends(r.completion)) {
      for (void* page : r.pages) pages_.drop(page);
      ++finished_;
      finished_tokens_ += transcript_.length(r.completion);
    } else {
      running_.push_back(std::move(r));
    }
  }

  Qwen2& model_;
  const ModelTensors& weights_;
  const ReadyWeights& ready_;
  const PackedTokens& prompts_;
  const SamplingParams& sampling_;
  Control& control_;
  Transcript transcript_;

  std::int64_t total_, next_ = 0;            // completions: all, and the first not started
  std::int64_t limit_ = 0, page_limit_ = 0;  // sequences and pages in use at once
  std::int64_t finished_ = 0, finished_tokens_ = 0;
  std::int64_t last_prefilled_ = -1;
  std::int64_t page_size_;  // elements
  CachePages pages_;
  std::vector<Running> running_;       // the oldest first
  std::vector<std::int64_t> stopped_;  // completions that lost their pages
  std::vector<Prefilled> prefilled_;
};

}  // namespace

Completions generate(Qwen2& model, const ModelTensors& weights, const ReadyWeights& ready,
                     const PackedTokens& prompts, const SamplingParams& sampling, std::int64_t cache_bytes,
                     Control& control) {
  if (ops::on_aten(weights.embed)) {
    return generate_on_device(model, weights, ready, prompts, sampling, cache_bytes, control);
  }
  return Decoder(model, weights, ready, prompts, sampling, cache_bytes, control).run();
}

}  // namespace rapo
