// Keys and values of the sequences being decoded. The decoder (generate.cpp) takes a prompt's, branches a
// sequence off them for each completion, steps all sequences at once and drops those that have ended. Where a
// cache puts things is its own affair: paged_cache.cpp on the CPU, block_cache.cpp on a device.
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
  /// A name for the keys and values of a prompt or of a sequence.
  using Id = std::int64_t;

  /// A running sequence before a step.
  struct Row {
    Id sequence;
    std::int64_t length;  // tokens in the cache
    std::int32_t token;   // sampled, not yet in the cache
    double u;             // in [0, 1): decides about the next token
  };

  virtual ~Cache() = default;

  /// Sequences that may run at once.
  virtual std::int64_t limit() const = 0;
  /// Memory in units of the cache's own: what so many positions of a sequence take, what is taken, and what
  /// may be. A cache that has a place for every sequence counts nothing.
  virtual std::int64_t units_for(std::int64_t /*positions*/) const { return 0; }
  virtual std::int64_t units_used() const { return 0; }
  virtual std::int64_t unit_limit() const { return INT64_MAX; }

  /// The keys and values of prompts that one forward pass computed: prompt i is rows [begin, begin + length)
  /// of each layer's.
  struct Span {
    std::int64_t begin, length;
  };
  virtual std::vector<Id> take(const KeyValues& layers, const std::vector<Span>& prompts) = 0;
  /// A sequence that begins with the prompt. is_last: the prompt is not asked for again.
  virtual Id branch(Id prompt, bool is_last) = 0;
  virtual void drop(const std::vector<Id>& sequences) = 0;
  /// Puts every row's token into the cache and samples the one behind it. Rows are all running sequences.
  virtual std::vector<Choice> step(const std::vector<Row>& rows) = 0;
  /// The first token of each sequence, from the logits (B, V) behind its prompt.
  virtual std::vector<Choice> sample(const at::Tensor& logits, const std::vector<double>& uniforms) = 0;
};

/// What a call of generate asks of its cache.
struct CacheDemand {
  std::int64_t completions;  // in all
  std::int64_t positions;    // of the longest sequence
  std::int64_t bytes;        // PolicyOptions::cache_bytes
};

std::unique_ptr<Cache> make_paged_cache(Model& model, const SamplingParams& sampling,
                                        const CacheDemand& demand);
std::unique_ptr<Cache> make_block_cache(Model& model, const SamplingParams& sampling,
                                        const CacheDemand& demand);

}  // namespace rapo
