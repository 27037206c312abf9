// Operations on the optimizer's flat buffers.
#include <algorithm>
#include <cmath>

#include "ops/cpu/ops.h"

namespace rapo::ops::cpu {
namespace {

constexpr std::int64_t kBlock = 65536;
constexpr std::int64_t kRoundedAtOnce = 4096;  // stays in the first-level cache
static_assert(kBlock % kRoundedAtOnce == 0 && kRoundedAtOnce % loops::kRoundingBlock == 0);

/// Calls f(begin, end) on the threads, for ranges of at most kBlock elements.
template <class F>
void for_blocks(std::int64_t begin, std::int64_t end, const F& f) {
  const std::int64_t blocks = (end - begin + kBlock - 1) / kBlock;
  for_ranges(blocks, 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t b = first; b < last; ++b)
      f(begin + b * kBlock, std::min(end, begin + (b + 1) * kBlock));
  });
}

}  // namespace

double norm_of(const at::Tensor& flat) {
  const auto* x = data<float>(flat);
  const std::int64_t n = flat.numel();
  std::vector<double> sums(static_cast<std::size_t>((n + kBlock - 1) / kBlock));
  for_blocks(0, n, [&](std::int64_t begin, std::int64_t end) {
    sums[static_cast<std::size_t>(begin / kBlock)] = loops::table().sum_squares(x + begin, end - begin);
  });
  double total = 0;
  for (const double s : sums) total += s;
  return std::sqrt(total);
}

void adamw(AdamWBuffers& buffers, const std::vector<FlatRange>& ranges, const AdamWStep& step,
           const Control& control) {
  const AdamW& params = step.params;
  const auto t = static_cast<double>(step.number);
  loops::AdamWStep s{};
  s.beta1 = static_cast<float>(params.beta1);
  s.beta2 = static_cast<float>(params.beta2);
  s.rest1 = static_cast<float>(1 - params.beta1);
  s.rest2 = static_cast<float>(1 - params.beta2);
  s.eps = static_cast<float>(params.eps);
  s.learning_rate = static_cast<float>(step.learning_rate);
  s.bias1 = static_cast<float>(1 - std::pow(params.beta1, t));
  s.bias2 = static_cast<float>(1 - std::pow(params.beta2, t));
  s.grad_scale = static_cast<float>(step.grad_scale);
  auto* master = data<float>(buffers.master);
  const auto* grad = data<float>(buffers.grad);
  const bool is_float = buffers.mean.scalar_type() == at::kFloat;
  for (std::size_t r = 0; r < ranges.size(); ++r) {
    control.check();
    const FlatRange& range = ranges[r];
    s.weight_decay = range.decays ? static_cast<float>(params.weight_decay) : 0.0f;
    for_blocks(range.offset, range.offset + range.size, [&](std::int64_t begin, std::int64_t end) {
      if (is_float) {
        loops::table().adamw(master + begin, grad + begin, data<float>(buffers.mean) + begin,
                             data<float>(buffers.square) + begin, end - begin, s);
        return;
      }
      for (std::int64_t at = begin; at < end; at += kRoundedAtOnce) {
        const std::int64_t n = std::min(kRoundedAtOnce, end - at);
        auto *mean = data<loops::BFloat16>(buffers.mean) + at,
             *square = data<loops::BFloat16>(buffers.square) + at;
        float *wide_mean = scratch(2 * kRoundedAtOnce), *wide_square = wide_mean + kRoundedAtOnce;
        const loops::Table& table = loops::table();
        table.bf16.widen(mean, wide_mean, n);
        table.bf16.widen(square, wide_square, n);
        table.adamw(master + at, grad + at, wide_mean, wide_square, n, s);
        const std::int64_t first = at - range.offset;
        table.round_randomly(wide_mean, mean, n, step.rounding_key, 2 * r, first);
        table.round_randomly(wide_square, square, n, step.rounding_key, 2 * r + 1, first);
      }
    });
  }
}

void round_weights(const at::Tensor& master, at::Tensor& weights) {
  const auto* from = data<float>(master);
  by_dtype(weights, [&](auto tag) {
    using T = decltype(tag);
    auto* to = data<T>(weights);
    for_blocks(0, master.numel(), [&](std::int64_t begin, std::int64_t end) {
      loops::table().ops<T>().round(from + begin, to + begin, end - begin);
    });
  });
}

void round_randomly(const at::Tensor& from, at::Tensor& to, const RoundingNumbers& numbers,
                    std::int64_t first) {
  const auto* x = data<float>(from);
  auto* y = data<loops::BFloat16>(to);
  for_blocks(0, from.numel(), [&](std::int64_t begin, std::int64_t end) {
    loops::table().round_randomly(x + begin, y + begin, end - begin, numbers.key, numbers.stream,
                                  first + begin);
  });
}

}  // namespace rapo::ops::cpu
