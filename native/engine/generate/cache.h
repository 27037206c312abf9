// The interface of a key/value cache for decoding. The decoder (generate.cpp) stores a prompt's keys and
// values, starts (branches) a sequence from them for each completion, steps all sequences at once and drops
// the sequences that have ended. Two classes implement it: paged_cache.cpp for the CPU, block_cache.cpp for
// devices.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "generate/sampler.h"
#include "model/qwen2.h"
#include "model/weights.h"
#include "types.h"

namespace rapo {

class Cache {
 public:
  /// Identifies the keys and values of a prompt or of a sequence.
  using Id = std::int64_t;

  /// A running sequence, before a step.
  struct Row {
    Id sequence;
    std::int64_t length;  // tokens in the cache
    std::int32_t token;   // the last sampled token, which is not in the cache yet
    double u;             // random number in [0, 1) that selects the next token
  };

  virtual ~Cache() = default;

  /// The largest number of sequences that may run at once.
  virtual std::int64_t limit() const = 0;
  /// Memory, counted in units that the cache defines: the units that so many positions of a sequence need,
  /// the units in use, and the largest number that may be in use. A cache with a place for every sequence
  /// leaves these defaults.
  virtual std::int64_t units_for(std::int64_t /*positions*/) const { return 0; }
  virtual std::int64_t units_used() const { return 0; }
  virtual std::int64_t unit_limit() const { return INT64_MAX; }

  /// A prompt's rows in a forward pass: rows [begin, begin + length) of each layer's keys and values.
  struct Span {
    std::int64_t begin, length;
  };
  virtual std::vector<Id> take(const KeyValues& layers, const std::vector<Span>& prompts) = 0;
  /// Starts a sequence that begins with the prompt. is_last: no other sequence will be started from this
  /// prompt.
  virtual Id branch(Id prompt, bool is_last) = 0;
  /// A copy of the keys and values of a sequence's first `length` tokens.
  virtual at::Tensor save(Id sequence, std::int64_t length) = 0;
  /// Stores what save() gave, by a cache of the same model, like a prompt of `length` tokens.
  virtual Id restore(const at::Tensor& saved, std::int64_t length) = 0;
  virtual void drop(const std::vector<Id>& sequences) = 0;
  /// Adds each row's token to the cache and samples the next token. `rows` are all running sequences.
  virtual std::vector<Choice> step(const std::vector<Row>& rows) = 0;
  /// Samples the first token of each sequence from the logits (B, V) at the end of its prompt.
  virtual std::vector<Choice> sample(const at::Tensor& logits, const std::vector<double>& uniforms) = 0;
};

/// What one call of generate needs of its cache.
struct CacheDemand {
  std::int64_t completions;  // in the whole call
  std::int64_t positions;    // of the longest sequence, prompt included
  std::int64_t bytes;        // see PolicyOptions::cache_bytes
};

std::unique_ptr<Cache> make_paged_cache(Model& model, const SamplingParams& sampling,
                                        const CacheDemand& demand);
std::unique_ptr<Cache> make_block_cache(Model& model, const SamplingParams& sampling,
                                        const CacheDemand& demand);

}  // namespace rapo
