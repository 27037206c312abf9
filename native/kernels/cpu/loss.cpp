// The fast path on the CPU. Threads share out the rows. Each row takes one or two reads of its logits and one
// write.
#include "../loss.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <exception>
#include <functional>
#include <limits>
#include <mutex>
#include <vector>

#include "../dtypes.h"
#include "../parallel.h"
#include "../sequence.h"
#include "../token.h"
#include "../validate.h"
#include "row.h"
#include "select.h"

namespace rapo {
namespace {

// A gradient smaller than this is written into the caches, where the next reader finds it. A larger gradient
// is written past the caches.
constexpr std::int64_t kStreamBytes = std::int64_t{4} << 20;
// The number of elements that are worth handing to another thread (about 10 us of work).
constexpr std::int64_t kGrain = 16384;

/// Runs body(row) for all rows on the pool. Bad logits in one row do not stop the other rows, so that the
/// error is always that of the first bad row.
void for_each_row(std::int64_t rows, std::int64_t vocab_size, const Control* control,
                  const std::function<void(std::int64_t)>& body) {
  const std::int64_t rows_an_item = std::max<std::int64_t>(1, kGrain / vocab_size);
  std::mutex mutex;
  std::int64_t first_bad = rows;
  std::exception_ptr error;
  parallel_for((rows + rows_an_item - 1) / rows_an_item, [&](std::int64_t item) {
    if (control) control->check();
    const std::int64_t end = std::min(rows, (item + 1) * rows_an_item);
    for (std::int64_t row = item * rows_an_item; row < end; ++row) {
      try {
        body(row);
      } catch (const Error&) {
        std::lock_guard<std::mutex> lock(mutex);
        if (row < first_bad) {
          first_bad = row;
          error = std::current_exception();
        }
      }
    }
  });
  if (error) std::rethrow_exception(error);
}

class Loss {
 public:
  Loss(const Batch& batch, const Objective& objective, const Outputs& outputs)
      : b_(batch), o_(objective), out_(outputs), kernels_(row_kernels()), dtype_(dtype_index(batch.dtype)) {
    const auto bytes = b_.rows * b_.vocab_size * static_cast<std::int64_t>(dtype_size(out_.grad_dtype));
    // In place, the cache line to be written is in the cache already.
    stream_ = bytes >= kStreamBytes && out_.grad_logits != b_.logits;
  }

  Token row(std::int64_t i) const {
    RowSums sums;
    Token token;
    if (b_.token_weights[i] == 0) {
      if (out_.grad_logits) std::memset(gradient_row(i), 0, b_.vocab_size * dtype_size(out_.grad_dtype));
    } else {
      const auto pair = read(i, sums);
      token = evaluate_token(b_, o_, i, sums);
      if (out_.grad_logits) write_gradient(i, pair, sums, token);
    }
    write_token(out_, i, sums, token);
    return token;
  }

 private:
  const void* policy_row(std::int64_t i) const { return row_of(b_.logits, b_.dtype, b_.logits_stride, i); }
  const void* reference_row(std::int64_t i) const {
    return row_of(b_.ref_logits, b_.dtype, b_.ref_stride, i);
  }
  void* gradient_row(std::int64_t i) const {
    return row_of(out_.grad_logits, out_.grad_dtype, out_.grad_stride, i);
  }
  /// Reads the row. The policy's logits are read last, so that they are still in the cache for the gradient.
  PairStats read(std::int64_t i, RowSums& sums) const {
    const auto scale = static_cast<float>(1 / o_.temperature);
    PairStats s{{0, 0, 0}, {0, 0, 0}, 0};
    const void* row = policy_row(i);
    const void* ref = o_.penalty == Penalty::kNone ? nullptr : reference_row(i);
    const float ref_scale = ref_scale_of(b_, o_, i);
    // With phi = 0 the reference is uniform over the vocabulary, words with logit -inf included. The
    // reference's logits are still read once, since a NaN in them is an error.
    const bool uniform = ref && ref_scale == 0;
    const bool full = is_full(o_.penalty);
    if (uniform || (ref && !full)) {
      s.r = kernels_.sum[dtype_](ref, b_.vocab_size, uniform ? scale : ref_scale);
      if (!usable(s.r)) throw_bad_logits("refLogits", b_.name_of(i), ref, b_.dtype, b_.vocab_size);
    }
    if (full) {
      // With the scale kFlat e^x is 1 for every finite logit, so that any row can stand for the uniform one.
      const auto pair_stats = kernels_.pair_stats[full_index(o_.penalty)][dtype_];
      s = uniform ? pair_stats(row, row, b_.vocab_size, scale, kFlat)
                  : pair_stats(row, ref, b_.vocab_size, scale, ref_scale);
    } else {
      s.p = kernels_.stats[dtype_](row, b_.vocab_size, scale);
    }
    if (!usable(s.p)) throw_bad_logits("logits", b_.name_of(i), row, b_.dtype, b_.vocab_size);
    if (full && !uniform && !usable(s.r))
      throw_bad_logits("refLogits", b_.name_of(i), ref, b_.dtype, b_.vocab_size);
    const auto a = b_.token_ids[i];
    sums = row_sums(s, b_, o_, i, load_scalar(row, b_.dtype, a), ref ? load_scalar(ref, b_.dtype, a) : 0);
    return s;
  }

  void write_gradient(std::int64_t i, const PairStats& s, const RowSums& sums, const Token& token) const {
    const GradientTerms terms = gradient_terms(s, b_, o_, i, sums, token);
    const int out_index = out_.grad_dtype == b_.dtype ? 0 : 1;
    const void* row = policy_row(i);
    void* out = gradient_row(i);
    const auto a = b_.token_ids[i];
    const double at_token = gradient_at_token(b_, o_, i, sums, token);
    if (is_full(o_.penalty)) {
      // A uniform reference (phi = 0) needs no logits of its own: with its scale of 0 any finite row is
      // constant.
      const void* ref = terms.ref_scale == 0 ? row : reference_row(i);
      kernels_.pair_gradient[full_index(o_.penalty)][dtype_][out_index](row, ref, out, b_.vocab_size, terms,
                                                                        stream_);
    } else {
      kernels_.gradient[dtype_][out_index](row, out, b_.vocab_size, terms, stream_);
    }
    store_scalar(out, out_.grad_dtype, a, at_token);
  }

  const Batch& b_;
  const Objective& o_;
  const Outputs& out_;
  const RowKernels& kernels_;
  const int dtype_;
  bool stream_;
};

/// gspo needs every log-prob of a sequence before the sequence's first gradient: one more pass over the
/// policy's logits.
std::vector<double> token_logprobs(const Batch& batch, double temperature, const Control* control) {
  std::vector<double> logprobs(static_cast<std::size_t>(batch.rows));
  if (!batch.old_logprobs) return logprobs;
  const auto& kernels = row_kernels();
  const auto scale = static_cast<float>(1 / temperature);
  for_each_row(batch.rows, batch.vocab_size, control, [&](std::int64_t i) {
    if (batch.token_weights[i] == 0) return;
    const void* row = row_of(batch.logits, batch.dtype, batch.logits_stride, i);
    const auto s = kernels.stats[dtype_index(batch.dtype)](row, batch.vocab_size, scale);
    if (!usable(s)) throw_bad_logits("logits", batch.name_of(i), row, batch.dtype, batch.vocab_size);
    logprobs[i] = log_prob(s, load_scalar(row, batch.dtype, batch.token_ids[i]), scale);
  });
  return logprobs;
}

}  // namespace

Metrics policy_loss(const Batch& given, const Objective& objective, const Outputs& outputs,
                    const Control* control) {
  validate_loss(given, objective, outputs, false);
  Batch batch = given;
  std::vector<double> sequence_ratios;
  if (batch.sequence_offsets) {
    sequence_ratios = sequence_log_ratios(batch, token_logprobs(batch, objective.temperature, control));
    batch.sequence_log_ratios = sequence_ratios.data();
  }
  const Loss loss(batch, objective, outputs);
  std::vector<Token> tokens(static_cast<std::size_t>(batch.rows));
  for_each_row(batch.rows, batch.vocab_size, control, [&](std::int64_t i) { tokens[i] = loss.row(i); });
  Metrics metrics;
  for (const auto& token : tokens) add_token(metrics, token);
  return metrics;
}

void gather_logprobs(const LogitRows& logits, const std::int32_t* token_ids, double temperature,
                     const GatherOutputs& outputs, const Control* control) {
  validate_gather(logits, token_ids, temperature, outputs, false);
  const auto& kernels = row_kernels();
  const auto scale = static_cast<float>(1 / temperature);
  for_each_row(logits.rows, logits.vocab_size, control, [&](std::int64_t i) {
    const void* row = row_of(logits.data, logits.dtype, logits.stride, i);
    const auto s = kernels.stats[dtype_index(logits.dtype)](row, logits.vocab_size, scale);
    if (!usable(s)) throw_bad_logits("logits", logits.name_of(i), row, logits.dtype, logits.vocab_size);
    if (outputs.logprobs) {
      outputs.logprobs[i] =
          static_cast<float>(log_prob(s, load_scalar(row, logits.dtype, token_ids[i]), scale));
    }
    if (outputs.entropy) outputs.entropy[i] = static_cast<float>(entropy(s));
    if (outputs.log_sum_exp) outputs.log_sum_exp[i] = static_cast<float>(s.max * scale + log_sum(s));
  });
}

}  // namespace rapo
