#include "generate.h"

#include <algorithm>
#include <cstring>

#include "sampler.h"

namespace rapo {
namespace {

constexpr std::int64_t kPrefillTokens = 8192;  // at once
// With max_batch = 0: a decoding step reads the weights and the cache, so that a cache of some times the
// weights' size pays for reading those; beyond that more slots only push a small model's cache out of the
// processor's.
constexpr std::int64_t kCacheToWeights = 4, kMinSlots = 64, kMaxSlots = 512;
constexpr std::int64_t kCacheBytes = std::int64_t{1} << 30;  // at most

/// A prompt whose completions are being started: its keys and values, and the logits of its first new token.
struct Prefilled {
  std::int64_t prompt = -1, waiting = 0;  // completions not started
  std::int64_t length = 0;
  std::vector<at::Tensor> blocks;  // per layer, as in the cache
  at::Tensor logits;               // (1, V)
};

struct Running {
  std::int64_t completion = 0, slot = 0, length = 0;  // length: tokens in the cache
  std::int32_t token = 0;                             // sampled, not yet in the cache
};

class Decoder {
 public:
  Decoder(Qwen2& model, const ModelTensors& weights, const ReadyWeights& ready, const PackedTokens& prompts,
          const SamplingParams& sampling, Control& control)
      : model_(model),
        weights_(weights),
        ready_(ready),
        prompts_(prompts),
        sampling_(sampling),
        control_(control) {
    const std::int64_t count = static_cast<std::int64_t>(prompts.offsets.size()) - 1;
    total_ = count * sampling.n;
    std::int64_t longest = 0;
    for (std::int64_t p = 0; p < count; ++p) longest = std::max(longest, prompt_length(p));
    const std::int64_t blocks =
        (longest + sampling.max_new_tokens + loops::kCacheBlock - 1) / loops::kCacheBlock;
    const std::int64_t block = 2 * model.config().kv_size() * loops::kCacheBlock;
    const auto width = static_cast<std::int64_t>(weights.embed.element_size());
    const std::int64_t bytes = blocks * block * model.config().layers * width;  // of a slot
    std::int64_t slots =
        std::clamp(kCacheToWeights * model.layout().parameters() * width / bytes, kMinSlots, kMaxSlots);
    slots = std::min(slots, std::max<std::int64_t>(kCacheBytes / bytes, 1));
    if (sampling.max_batch > 0) slots = sampling.max_batch;
    slots = std::min(slots, total_);
    for (std::int64_t i = 0; i < model.config().layers; ++i) {
      state_.caches.push_back(at::empty({slots, blocks, block}, weights.embed.options()));
    }
    for (std::int64_t s = slots; s-- > 0;) free_.push_back(s);
    tokens_.resize(static_cast<std::size_t>(total_));
    logprobs_.resize(static_cast<std::size_t>(total_));
    reasons_.resize(static_cast<std::size_t>(total_), FinishReason::kLength);
    control.total = total_ * sampling.max_new_tokens;
  }

  Completions run() {
    // Starting is batched: a prefill costs a pass over the weights, so a few free slots wait for company.
    const std::size_t worth = std::max<std::size_t>(1, free_.size() / 8);
    while (next_ < total_ || !running_.empty()) {
      control_.check();
      if (next_ < total_ && (running_.empty() || free_.size() >= worth)) start();
      if (!running_.empty()) step();
    }
    return collect();
  }

 private:
  std::int64_t prompt_length(std::int64_t p) const {
    return prompts_.offsets[static_cast<std::size_t>(p) + 1] - prompts_.offsets[static_cast<std::size_t>(p)];
  }

  /// Gives free slots to the next completions; their prompts are computed where that has not happened yet.
  void start() {
    const std::int64_t count =
        std::min<std::int64_t>(total_ - next_, static_cast<std::int64_t>(free_.size()));
    std::vector<std::int64_t> missing;
    for (std::int64_t c = next_; c < next_ + count; ++c) {
      const std::int64_t p = c / sampling_.n;
      if (p > last_prefilled_) missing.push_back(last_prefilled_ = p);
    }
    for (std::size_t i = 0; i < missing.size();) {
      std::size_t stop = i;
      for (std::int64_t tokens = 0; stop < missing.size(); ++stop) {
        tokens += prompt_length(missing[stop]);
        if (stop > i && tokens > kPrefillTokens) break;
      }
      prefill(missing[i], missing[stop - 1] + 1);
      i = stop;
    }
    std::vector<Running> fresh;
    std::vector<at::Tensor> rows;
    for (std::int64_t i = 0; i < count; ++i) {
      Running r;
      r.completion = next_++;
      r.slot = free_.back();
      free_.pop_back();
      auto ready = std::find_if(prefilled_.begin(), prefilled_.end(),
                                [&](const Prefilled& p) { return p.prompt == r.completion / sampling_.n; });
      r.length = ready->length;
      for (std::size_t layer = 0; layer < state_.caches.size(); ++layer) {
        const at::Tensor& from = ready->blocks[layer];
        at::Tensor& cache = state_.caches[layer];
        std::memcpy(static_cast<char*>(cache.data_ptr()) +
                        static_cast<std::size_t>(r.slot * cache.stride(0)) * cache.element_size(),
                    from.data_ptr(), from.nbytes());
      }
      rows.push_back(ready->logits);
      fresh.push_back(r);
      if (--ready->waiting == 0) prefilled_.erase(ready);
    }
    sample(fresh, at::cat(rows));
    for (const Running& r : fresh) settle(r);
  }

  /// Prompts [first, end): keys, values and the logits behind the last token of each.
  void prefill(std::int64_t first, std::int64_t end) {
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
      ready.waiting = sampling_.n;
      ready.length = prompt.lengths[0];
      for (const at::Tensor& layer : kv) {
        ready.blocks.push_back(
            ops::cache_blocks(model_.head_shape(), layer.narrow(0, prompt.begin, ready.length)));
      }
      ready.logits = logits.narrow(0, p - first, 1);
      prefilled_.push_back(std::move(ready));
    }
  }

  /// One token for every running sequence.
  void step() {
    std::vector<std::int32_t> ids;
    state_.slots.clear();
    state_.positions.clear();
    for (const Running& r : running_) {
      ids.push_back(r.token);
      state_.slots.push_back(r.slot);
      state_.positions.push_back(r.length);
    }
    const auto logits = ops::linear(model_.decode(weights_, ready_, ids, state_), ready_.head);
    std::vector<Running> now;
    now.swap(running_);
    for (Running& r : now) ++r.length;
    sample(now, logits);
    for (const Running& r : now) settle(r);
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
        const auto c = static_cast<std::size_t>(r.completion);
        const double u = uniform(sampling_.seed, static_cast<std::uint64_t>(c), tokens_[c].size());
        const Choice choice = choose(logits + i * vocab, vocab, sampling_, u, scratch);
        r.token = choice.token;
        tokens_[c].push_back(choice.token);
        logprobs_[c].push_back(choice.logprob);
      }
    });
    control_.done += static_cast<std::int64_t>(rows.size());
  }

  /// Ends the sequence and frees its slot, or lets it run on.
  void settle(const Running& r) {
    const auto c = static_cast<std::size_t>(r.completion);
    const auto& stops = sampling_.stop_token_ids;
    const bool stopped = std::find(stops.begin(), stops.end(), r.token) != stops.end();
    const auto length = static_cast<std::int64_t>(tokens_[c].size());
    if (stopped || length == sampling_.max_new_tokens) {
      if (stopped) reasons_[c] = FinishReason::kStop;
      free_.push_back(r.slot);
      control_.done += sampling_.max_new_tokens - length;  // what will not be generated counts as done
    } else {
      running_.push_back(r);
    }
  }

  Completions collect() {
    Completions out;
    out.tokens.offsets.push_back(0);
    for (std::size_t c = 0; c < tokens_.size(); ++c) {
      out.tokens.token_ids.insert(out.tokens.token_ids.end(), tokens_[c].begin(), tokens_[c].end());
      out.tokens.offsets.push_back(static_cast<std::int64_t>(out.tokens.token_ids.size()));
      out.logprobs.insert(out.logprobs.end(), logprobs_[c].begin(), logprobs_[c].end());
    }
    out.finish_reasons = std::move(reasons_);
    return out;
  }

  Qwen2& model_;
  const ModelTensors& weights_;
  const ReadyWeights& ready_;
  const PackedTokens& prompts_;
  const SamplingParams& sampling_;
  Control& control_;

  std::int64_t total_ = 0, next_ = 0;  // completions: all, and the first not started
  std::int64_t last_prefilled_ = -1;
  DecodeState state_;
  std::vector<std::int64_t> free_;
  std::vector<Running> running_;
  std::vector<Prefilled> prefilled_;
  std::vector<std::vector<std::int32_t>> tokens_;
  std::vector<std::vector<float>> logprobs_;
  std::vector<FinishReason> reasons_;
};

}  // namespace

Completions generate(Qwen2& model, const ModelTensors& weights, const ReadyWeights& ready,
                     const PackedTokens& prompts, const SamplingParams& sampling, Control& control) {
  return Decoder(model, weights, ready, prompts, sampling, control).run();
}

}  // namespace rapo
