// The completions of one call of generate, as they grow.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "control.h"
#include "ops/philox.h"
#include "types.h"

namespace rapo {

class Transcript {
 public:
  Transcript(const PackedTokens& prompts, const SamplingParams& sampling, Control& control)
      : sampling_(sampling),
        control_(control),
        total_((prompts.offsets.size() - 1) * static_cast<std::size_t>(sampling.n)),
        tokens_(total_),
        logprobs_(total_),
        reasons_(total_, FinishReason::kLength) {
    control.total = total() * sampling.max_new_tokens;
  }

  /// Completions, in the order prompt 0 sample 0, prompt 0 sample 1, …
  std::int64_t total() const { return static_cast<std::int64_t>(total_); }

  /// Number of tokens in a completion so far.
  std::int64_t length(std::int64_t completion) const {
    return static_cast<std::int64_t>(tokens_[index(completion)].size());
  }

  /// The random number for a completion's next token.
  double next_uniform(std::int64_t completion) const {
    const std::size_t c = index(completion), n = index(sampling_.n);
    const bool is_shared = sampling_.seeds.size() == 1;
    return uniform(sampling_.seeds[is_shared ? 0 : c / n],
                   is_shared ? index(sampling_.first_completion) + c : c % n, tokens_[c].size());
  }

  const std::vector<std::int32_t>& tokens(std::int64_t completion) const {
    return tokens_[index(completion)];
  }

  /// Appends a token. The caller adds the token to control's count.
  void add(std::int64_t completion, std::int32_t token, float logprob) {
    tokens_[index(completion)].push_back(token);
    logprobs_[index(completion)].push_back(logprob);
  }

  /// Drops the tokens of a completion, which starts again with the same random numbers.
  void restart(std::int64_t completion) {
    control_.done -= length(completion);
    tokens_[index(completion)].clear();
    logprobs_[index(completion)].clear();
  }

  /// Whether the completion's last token ends it.
  bool ends(std::int64_t completion) {
    const auto& stops = sampling_.stop_token_ids;
    const bool stopped =
        std::find(stops.begin(), stops.end(), tokens_[index(completion)].back()) != stops.end();
    if (!stopped && length(completion) < sampling_.limit(index(completion / sampling_.n))) return false;
    if (stopped) reasons_[index(completion)] = FinishReason::kStop;
    // Tokens that need not be generated count as done.
    control_.done += sampling_.max_new_tokens - length(completion);
    return true;
  }

  Completions collect() {
    Completions out;
    out.tokens.offsets.push_back(0);
    for (std::size_t c = 0; c < total_; ++c) {
      out.tokens.token_ids.insert(out.tokens.token_ids.end(), tokens_[c].begin(), tokens_[c].end());
      out.tokens.offsets.push_back(static_cast<std::int64_t>(out.tokens.token_ids.size()));
      out.logprobs.insert(out.logprobs.end(), logprobs_[c].begin(), logprobs_[c].end());
    }
    out.finish_reasons = std::move(reasons_);
    return out;
  }

 private:
  static std::size_t index(std::int64_t completion) { return static_cast<std::size_t>(completion); }

  const SamplingParams& sampling_;
  Control& control_;
  std::size_t total_;
  std::vector<std::vector<std::int32_t>> tokens_;
  std::vector<std::vector<float>> logprobs_;
  std::vector<FinishReason> reasons_;
};

}  // namespace rapo
