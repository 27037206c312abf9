#include "generate/generate.h"

#include <ATen/ops/cat.h>

#include <algorithm>
#include <cmath>

#include "cuda/device.h"
#include "generate/cache.h"
#include "generate/transcript.h"
#include "model/memory.h"

namespace rapo {
namespace {

/// A prompt in the cache of which some completions have not started.
struct Prefilled {
  std::int64_t prompt = -1, waiting = 0;  // waiting: completions that have not started
  Cache::Id kept = 0;
  std::int64_t length = 0;  // tokens in the cache: the whole prompt, or the part that the last turn left
  at::Tensor logits;        // (1, V) at the end of the prompt, where the whole prompt is in the cache
};

struct Running {
  std::int64_t completion = 0, length = 0;  // length: tokens in the cache
  std::int32_t token = 0;                   // the next one for the cache: sampled, or of the prompt
  Cache::Id sequence = 0;
};

class Decoder {
 public:
  Decoder(Model& model, const PackedTokens& prompts, const SamplingParams& sampling, Cache& cache,
          KeptSequences& kept, std::int64_t keep_bytes, Control& control)
      : model_(model),
        prompts_(prompts),
        sampling_(sampling),
        cache_(cache),
        kept_(kept),
        keep_bytes_(keep_bytes),
        control_(control),
        transcript_(prompts, sampling, control),
        total_(transcript_.total()) {}

  Completions run() {
    // A prefill reads all weights, so few free places wait until there are enough of them to fill at once.
    const std::int64_t worth = std::max<std::int64_t>(1, cache_.limit() / 8);
    while (waiting() > 0 || !running_.empty()) {
      control_.check();
      const std::int64_t count = waiting() > 0 ? startable() : 0;
      if (count > 0 && (count >= worth || count == waiting() || running_.empty())) start(count);
      if (!running_.empty()) step();
    }
    Completions completions = transcript_.collect();
    completions.cached_tokens = cached_tokens_;
    return completions;
  }

  /// After run(): the sequences of this turn.
  KeptSequences leave() { return std::move(leaving_); }

 private:
  /// Completions that are to be started, in this order: first those that were stopped because the cache was
  /// full, then the others.
  std::int64_t waiting() const { return static_cast<std::int64_t>(stopped_.size()) + total_ - next_; }
  std::int64_t waiting_at(std::int64_t i) const {
    const auto stopped = static_cast<std::int64_t>(stopped_.size());
    return i < stopped ? stopped_[static_cast<std::size_t>(i)] : next_ + i - stopped;
  }

  std::int64_t prompt_length(std::int64_t p) const {
    return prompts_.offsets[static_cast<std::size_t>(p) + 1] - prompts_.offsets[static_cast<std::size_t>(p)];
  }

  const std::int32_t* prompt_tokens(std::int64_t p) const {
    return prompts_.token_ids.data() + prompts_.offsets[static_cast<std::size_t>(p)];
  }

  /// How many of the waiting completions may start. Each sequence is expected to become twice as long as the
  /// finished ones were on average, since short sequences finish first. So the cache is filled with what
  /// sequences use, not with what they could use at most. If a sequence had to be stopped because that was
  /// too little, each is expected to become as long as the longest so far, so that none is stopped again.
  std::int64_t startable() const {
    const std::int64_t free =
        std::min(cache_.limit() - static_cast<std::int64_t>(running_.size()), waiting());
    if (cache_.unit_limit() == INT64_MAX || free <= 0) return free;
    std::int64_t expected = finished_ == 0 ? sampling_.max_new_tokens : 2 * finished_tokens_ / finished_ + 1;
    if (!stopped_.empty()) {
      for (const Running& r : running_) expected = std::max(expected, transcript_.length(r.completion) + 1);
    }
    expected = std::min(expected, sampling_.max_new_tokens);
    std::int64_t units = 0;
    for (const Running& r : running_) {
      const std::int64_t made = transcript_.length(r.completion);
      const std::int64_t length = std::max(r.length, prompt_length(r.completion / sampling_.n));
      units += cache_.units_for(length + std::max<std::int64_t>(1, expected - made));
    }
    for (std::int64_t i = 0; i < free; ++i) {
      units += cache_.units_for(prompt_length(waiting_at(i) / sampling_.n) + expected);
      if (units > cache_.unit_limit()) return std::max<std::int64_t>(i, running_.empty() ? 1 : 0);
    }
    return free;
  }

  /// Starts the first `count` of the waiting completions. Prompts that are not in the cache are computed.
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
        if (!restore(p, 1)) prefill(p, p + 1, 1);
      } else {
        ++ready->waiting;
      }
    }
    next_ += count - again;
    prefill_new();

    std::vector<Running> fresh;
    std::vector<at::Tensor> logits;
    std::vector<double> uniforms;
    for (const std::int64_t completion : completions) {
      Running r;
      r.completion = completion;
      const auto ready = find_prefilled(completion / sampling_.n);
      const bool is_last = --ready->waiting == 0;
      r.length = ready->length;
      r.sequence = cache_.branch(ready->kept, is_last);
      if (ready->logits.defined()) {
        logits.push_back(ready->logits);
        uniforms.push_back(transcript_.next_uniform(completion));
        fresh.push_back(r);
      } else {
        r.token = prompt_tokens(ready->prompt)[r.length];
        running_.push_back(r);
      }
      if (is_last) prefilled_.erase(ready);
    }
    if (!fresh.empty()) settle(std::move(fresh), cache_.sample(at::cat(logits), uniforms));
  }

  std::vector<Prefilled>::iterator find_prefilled(std::int64_t prompt) {
    return std::find_if(prefilled_.begin(), prefilled_.end(),
                        [prompt](const Prefilled& p) { return p.prompt == prompt; });
  }

  /// Takes a prompt's beginning from what the last turn left, for n completions of the prompt. The steps
  /// compute the rest of the prompt, which is short beside what the last turn left.
  bool restore(std::int64_t p, std::int64_t n) {
    const auto* found = kept_.find(prompt_tokens(p), prompt_length(p));
    if (!found) return false;
    const auto length = static_cast<std::int64_t>(found->tokens.size());
    prefilled_.push_back({p, n, cache_.restore(found->data, length), length, {}});
    if (p >= prefilled_end_) cached_tokens_ += length;  // not when a stopped completion starts again
    return true;
  }

  /// Computes the prompts of the completions before next_ that have not been computed yet, several in one
  /// pass.
  void prefill_new() {
    const std::int64_t at_once = prefill_tokens(model_.net.config(), model_.element_size());
    const std::int64_t end = (next_ + sampling_.n - 1) / sampling_.n;
    while (prefilled_end_ < end) {
      if (restore(prefilled_end_, sampling_.n)) {
        ++prefilled_end_;
        continue;
      }
      std::int64_t stop = prefilled_end_ + 1;
      for (std::int64_t tokens = prompt_length(prefilled_end_); stop < end; ++stop) {
        tokens += prompt_length(stop);
        if (tokens > at_once || kept_.find(prompt_tokens(stop), prompt_length(stop))) break;
      }
      prefill(prefilled_end_, stop, sampling_.n);
      prefilled_end_ = stop;
    }
  }

  /// Computes prompts [first, end) for n completions of each: keys, values and the logits at the end of the
  /// prompt.
  void prefill(std::int64_t first, std::int64_t end, std::int64_t n) {
    const auto input = plain_input(prompts_, static_cast<std::size_t>(first), static_cast<std::size_t>(end));
    std::vector<Cache::Span> spans;
    std::vector<std::int64_t> last;
    for (const Family& prompt : input.families) {
      spans.push_back({prompt.begin, prompt.lengths[0]});
      last.push_back(prompt.begin + prompt.lengths[0] - 1);
    }
    KeyValues layers;
    const ops::Backend& ops = model_.net.ops();
    const auto hidden =
        model_.net.forward(model_.weights, model_.for_generation(), input, control_, nullptr, &layers);
    const auto logits =
        ops.linear(ops.gather_rows(hidden, last.data(), end - first), model_.for_generation().head, {});
    const std::vector<Cache::Id> kept = cache_.take(layers, spans);
    for (std::int64_t i = 0; i < end - first; ++i) {
      prefilled_.push_back({first + i, n, kept[static_cast<std::size_t>(i)], prompt_length(first + i),
                            logits.narrow(0, i, 1)});
    }
  }

  /// Stops the youngest sequences until the cache has room for the next token of each other sequence. Stopped
  /// sequences start again from their prompts later; their random numbers, and so their tokens, are the same.
  void make_room() {
    for (;;) {
      std::int64_t needed = 0;
      for (const Running& r : running_) needed += cache_.units_for(r.length + 1) - cache_.units_for(r.length);
      if (running_.size() == 1 || cache_.units_used() + needed <= cache_.unit_limit()) return;
      const Running& youngest = running_.back();
      cache_.drop({youngest.sequence});
      transcript_.restart(youngest.completion);
      stopped_.insert(stopped_.begin(), youngest.completion);
      running_.pop_back();
    }
  }

  /// Generates one token for every running sequence.
  void step() {
    if (cache_.unit_limit() != INT64_MAX) make_room();
    std::vector<Cache::Row> rows;
    rows.reserve(running_.size());
    for (const Running& r : running_) {
      rows.push_back({r.sequence, r.length, r.token, transcript_.next_uniform(r.completion)});
    }
    const auto choices = cache_.step(rows);
    std::vector<Running> now, sampled;
    std::vector<Choice> own;
    now.swap(running_);
    for (std::size_t i = 0; i < now.size(); ++i) {
      Running& r = now[i];
      const std::int64_t p = r.completion / sampling_.n;
      if (++r.length < prompt_length(p)) {
        r.token = prompt_tokens(p)[r.length];
        running_.push_back(r);
      } else {
        sampled.push_back(r);
        own.push_back(choices[i]);
      }
    }
    settle(std::move(sampled), own);
  }

  /// Records the next token of each sequence. Sequences that end leave the cache; the others keep running.
  void settle(std::vector<Running>&& sequences, const std::vector<Choice>& choices) {
    std::vector<Cache::Id> ended;
    for (std::size_t i = 0; i < sequences.size(); ++i) {
      Running& r = sequences[i];
      if (std::isnan(choices[i].logprob)) {
        throw Error(ErrorCode::kNonFinite, "the model's logits hold NaN or an infinity");
      }
      r.token = choices[i].token;
      transcript_.add(r.completion, r.token, choices[i].logprob);
    }
    control_.done += static_cast<std::int64_t>(sequences.size());
    for (const Running& r : sequences) {
      if (transcript_.ends(r.completion)) {
        if (sampling_.turn > 0) keep(r);
        ended.push_back(r.sequence);
        ++finished_;
        finished_tokens_ += transcript_.length(r.completion);
      } else {
        running_.push_back(r);
      }
    }
    cache_.drop(ended);
  }

  /// Keeps an ended sequence for the next turn, in the place of what the last turn left of it.
  void keep(const Running& r) {
    const std::int64_t p = r.completion / sampling_.n;
    if (sampling_.n == 1) kept_.drop(prompt_tokens(p), prompt_length(p));
    KeptSequences::Sequence sequence;
    sequence.tokens.assign(prompt_tokens(p), prompt_tokens(p) + prompt_length(p));
    const auto& own = transcript_.tokens(r.completion);
    sequence.tokens.insert(sequence.tokens.end(), own.begin(),
                           own.end() - 1);  // the last is not in the cache
    sequence.data = cache_.save(r.sequence, r.length);
    leaving_.add(std::move(sequence), keep_bytes_ - kept_.bytes());
  }

  Model& model_;
  const PackedTokens& prompts_;
  const SamplingParams& sampling_;
  Cache& cache_;
  KeptSequences& kept_;  // of the last turn
  KeptSequences leaving_;
  std::int64_t keep_bytes_, cached_tokens_ = 0;
  Control& control_;
  Transcript transcript_;

  std::int64_t total_, next_ = 0;   // completions: all of them; the first that was never started
  std::int64_t prefilled_end_ = 0;  // the first prompt that was never computed
  std::int64_t finished_ = 0, finished_tokens_ = 0;
  std::vector<Running> running_;       // oldest first
  std::vector<std::int64_t> stopped_;  // completions that were stopped to make room
  std::vector<Prefilled> prefilled_;
};

}  // namespace

Completions generate(Model& model, const PackedTokens& prompts, const SamplingParams& sampling,
                     std::int64_t cache_bytes, KeptSequences& kept, Control& control) {
  KeptSequences last;
  std::swap(last, kept);  // nothing is left behind if this call fails
  if (sampling.turn <= 1) last.clear();
  CacheDemand demand{};
  for (std::size_t p = 0; p + 1 < prompts.offsets.size(); ++p) {
    demand.positions =
        std::max(demand.positions, prompts.offsets[p + 1] - prompts.offsets[p] + sampling.limit(p));
  }
  demand.completions = (static_cast<std::int64_t>(prompts.offsets.size()) - 1) * sampling.n;
  demand.bytes = cache_bytes;
  const auto make = model.net.ops().has_pages ? make_paged_cache : make_block_cache;
  const auto cache = make(model, sampling, demand);
  const std::int64_t keep_bytes =
      model.flat.is_cpu() ? cache_bytes : device::free_bytes(model.flat.device()) / 10 + last.bytes();
  Decoder decoder(model, prompts, sampling, *cache, last, keep_bytes, control);
  auto completions = decoder.run();
  kept = decoder.leave();
  return completions;
}

}  // namespace rapo
