#include <ATen/ops/arange.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/topk.h>
#include <ATen/ops/where.h>

#include <cmath>

#include "generate/sampler.h"
#include "ops/aten/ops.h"

namespace rapo {
namespace {

using ops::aten::options_of;
using ops::aten::wide;

/// For each row of ascending sums (B, n): the index of the first sum that exceeds `left` (B, 1), or n.
at::Tensor passed(const at::Tensor& sums, const at::Tensor& left) { return sums.le(left).sum({1}, true); }

/// Samples one token from each row of p (B, blocks * kSumBlock). The running sum goes by ascending id.
at::Tensor draw(const at::Tensor& p, const at::Tensor& u) {
  const std::int64_t rows = p.size(0), blocks = p.size(1) / loops::kSumBlock;
  const auto by_block = p.view({rows, blocks, loops::kSumBlock});
  const auto sums = by_block.sum({2}, false, at::kDouble);
  const auto ends = sums.cumsum(1);
  const auto left = ends.narrow(1, blocks - 1, 1).mul(u);
  const auto block = passed(ends, left).clamp_max_(blocks - 1);  // (B, 1)
  const auto before = ends.gather(1, block).sub_(sums.gather(1, block));
  const auto inner = by_block.gather(1, block.unsqueeze(2).expand({rows, 1, loops::kSumBlock})).squeeze(1);
  auto at = passed(inner.to(at::kDouble).cumsum(1), left.sub(before));
  // If rounding keeps the sum below `left`: the last word in the block whose probability is not 0, or the
  // most probable word.
  const auto numbers = at::arange(1, loops::kSumBlock + 1, block.options());
  const auto last = inner.gt(0).mul(numbers).amax({1}, true).sub_(1);
  at = at::minimum(at, last).add_(block.mul(loops::kSumBlock));
  return at::where(last.lt(0), p.argmax(1, true), at);
}

/// Samples one token from each row of p (B, V) after top-k, top-p and min-p. The running sum goes by
/// descending probability, and by id among equal ones. total (B, 1): the sum of p.
at::Tensor draw_filtered(const at::Tensor& p, const at::Tensor& total, const at::Tensor& u,
                         const SamplingParams& params) {
  constexpr std::int64_t kLow = 0xffffffff;
  const std::int64_t size = p.size(1);
  const bool has_top_k = params.top_k > 0 && params.top_k < size;
  // The sort key: the bits of the probability (not negative, so that they sort like the number), then the
  // inverted id.
  const auto numbers = at::arange(size, options_of(p, at::kLong)).neg_().add_(kLow);
  auto sorted = p.contiguous().view(at::kInt).to(at::kLong).bitwise_left_shift_(32).bitwise_or_(numbers);
  sorted = has_top_k ? std::get<0>(at::topk(sorted, params.top_k, 1, true, true))
                     : std::get<0>(at::sort(sorted, 1, true));
  const auto ids = sorted.bitwise_and(kLow).neg_().add_(kLow);
  auto q = sorted.bitwise_right_shift(32).to(at::kInt).view(at::kFloat).to(at::kDouble);
  auto keep = q.ge(params.min_p);
  if (params.top_p < 1) {
    const auto sums = q.cumsum(1), all = has_top_k ? sums.narrow(1, sums.size(1) - 1, 1) : total;
    keep.logical_and_(sums.sub(q).lt(all.mul(params.top_p)));
  }
  keep.narrow(1, 0, 1).fill_(true);
  q = q.mul_(keep);
  const auto sums = q.cumsum(1);
  const auto at = passed(sums, sums.narrow(1, sums.size(1) - 1, 1).mul(u));
  const auto last = q.gt(0).sum({1}, true).sub_(1).clamp_min_(0);  // the words that are kept come first
  return ids.gather(1, at::minimum(at, last));
}

}  // namespace

at::Tensor sample_aten(const at::Tensor& logits, const at::Tensor& u, const SamplingParams& params) {
  const std::int64_t rows = logits.size(0), size = logits.size(1);
  const std::int64_t padded = (size + loops::kSumBlock - 1) / loops::kSumBlock * loops::kSumBlock;
  const bool greedy = params.temperature == 0;
  const auto z = wide(logits).mul(greedy ? 1.0f : static_cast<float>(1 / params.temperature));
  const auto max = z.amax({1}, true);
  auto p = at::zeros({rows, padded}, z.options());
  p.narrow(1, 0, size).copy_(z.sub(max).exp_());
  const auto sum = p.sum({1}, true, at::kDouble);
  const auto words = p.narrow(1, 0, size), decide = u.unsqueeze(1);
  at::Tensor token;
  if (greedy) {
    token = logits.argmax(1, true);
  } else if (params.top_p < 1 || (params.top_k > 0 && params.top_k < size)) {
    token = draw_filtered(words, sum, decide, params);
  } else {
    if (params.min_p > 0) p.masked_fill_(p.lt(params.min_p), 0);
    token = draw(p, decide);
  }
  token.clamp_(0, size - 1);  // a row with NaN gives an arbitrary index
  auto logprob = z.gather(1, token).sub_(max).sub_(sum.log().to(at::kFloat)).clamp_max_(0).to(at::kDouble);
  logprob.masked_fill_(max.isfinite().logical_and_(sum.isfinite()).logical_not_(), std::nan(""));
  return at::stack({token.squeeze(1).to(at::kDouble), logprob.squeeze(1)});
}

}  // namespace rapo
