#include "generate/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/dtypes.h"
#include "ops/ops.h"

namespace rapo {
namespace {

/// Memory that choose() reuses from row to row; one per thread.
struct SamplerScratch {
  std::vector<float> p;
  std::vector<double> block_sums;
  std::vector<std::int32_t> order;
};

/// The tokens that pass the filters, most probable first. p: unnormalised probabilities with maximum 1.
void filter(const std::vector<float>& p, std::int64_t size, double total, const SamplingParams& params,
            std::vector<std::int32_t>& order) {
  const auto before = [&](std::int32_t a, std::int32_t b) {
    const float pa = p[static_cast<std::size_t>(a)], pb = p[static_cast<std::size_t>(b)];
    return pa > pb || (pa == pb && a < b);
  };
  order.resize(static_cast<std::size_t>(size));
  std::iota(order.begin(), order.end(), 0);
  const bool has_top_k = params.top_k > 0 && params.top_k < size;
  const std::size_t limit = static_cast<std::size_t>(has_top_k ? params.top_k : size);

  // Sorts only as many of the most probable tokens as the filters need: the number doubles until top-p is
  // reached, which is cheaper than sorting the whole row.
  std::size_t sorted = 0;
  const auto sort_up_to = [&](std::size_t count) {
    count = std::min(count, limit);
    if (count <= sorted) return;
    const auto from = order.begin() + static_cast<std::ptrdiff_t>(sorted);
    const auto to = order.begin() + static_cast<std::ptrdiff_t>(count);
    if (to != order.end()) std::nth_element(from, to, order.end(), before);
    std::sort(from, to, before);
    sorted = count;
  };

  std::size_t keep = limit;
  if (params.top_p < 1) {
    if (has_top_k) {
      sort_up_to(limit);
      total = 0;
      for (std::size_t i = 0; i < limit; ++i)
        total += static_cast<double>(p[static_cast<std::size_t>(order[i])]);
    }
    double sum = 0;
    for (keep = 0; keep < limit && sum < params.top_p * total; ++keep) {
      if (keep == sorted) sort_up_to(std::max<std::size_t>(256, sorted * 4));
      sum += static_cast<double>(p[static_cast<std::size_t>(order[keep])]);
    }
    keep = std::max<std::size_t>(keep, 1);
  } else if (has_top_k) {
    sort_up_to(limit);
  }
  if (sorted >= keep) {
    order.resize(keep);
    while (order.size() > 1 &&
           static_cast<double>(p[static_cast<std::size_t>(order.back())]) < params.min_p) {
      order.pop_back();
    }
  } else {  // only min-p: the tokens need no order and stay sorted by id
    const auto below = [&](std::int32_t v) {
      return static_cast<double>(p[static_cast<std::size_t>(v)]) < params.min_p;
    };
    order.erase(std::remove_if(order.begin(), order.end(), below), order.end());
  }
}

/// The lowest id among the highest logits. It compares logits, since the exponentials of two different logits
/// can round to the same value.
template <class T>
std::int64_t argmax(const T* logits, std::int64_t size) {
  std::int64_t best = 0;
  for (std::int64_t v = 1; v < size; ++v) {
    if (to_float(logits[v]) > to_float(logits[best])) best = v;
  }
  return best;
}

/// The token at which the running sum over all words passes u * sum. If rounding keeps the running sum below
/// that, the last word whose probability is not 0.
std::int64_t draw(const SamplerScratch& scratch, std::int64_t size, double sum, double u) {
  double left = u * sum;
  std::int64_t token = 0;
  for (std::size_t block = 0; block < scratch.block_sums.size(); ++block) {
    const std::int64_t begin = static_cast<std::int64_t>(block) * loops::kSumBlock;
    if (left >= scratch.block_sums[block] && begin + loops::kSumBlock < size) {
      left -= scratch.block_sums[block];
      continue;
    }
    for (std::int64_t v = begin; v < std::min(size, begin + loops::kSumBlock); ++v) {
      const double p = static_cast<double>(scratch.p[static_cast<std::size_t>(v)]);
      if (p > 0) token = v;
      left -= p;
      if (left < 0) return token;
    }
  }
  if (scratch.p[static_cast<std::size_t>(token)] > 0) return token;
  return std::max_element(scratch.p.begin(), scratch.p.begin() + size) - scratch.p.begin();
}

/// The same over the words that passed the filters.
std::int64_t draw(const SamplerScratch& scratch, double u) {
  const auto p = [&](std::int32_t v) { return static_cast<double>(scratch.p[static_cast<std::size_t>(v)]); };
  double left = 0;
  for (const auto v : scratch.order) left += p(v);
  left *= u;
  std::int64_t token = scratch.order.front();
  for (const auto v : scratch.order) {
    if (p(v) > 0) token = v;
    left -= p(v);
    if (left < 0) break;
  }
  return token;
}

template <class T>
Choice choose(const T* logits, std::int64_t vocab_size, const SamplingParams& params, double u,
              SamplerScratch& scratch) {
  scratch.p.resize(static_cast<std::size_t>(vocab_size));
  scratch.block_sums.resize(static_cast<std::size_t>((vocab_size + loops::kSumBlock - 1) / loops::kSumBlock));
  const bool greedy = params.temperature == 0;
  const float scale = greedy ? 1.0f : static_cast<float>(1 / params.temperature);
  const float max =
      loops::table().ops<T>().exp_row(logits, vocab_size, scale, scratch.p.data(), scratch.block_sums.data());
  const double sum = std::accumulate(scratch.block_sums.begin(), scratch.block_sums.end(), 0.0);
  // A NaN shows in the sum, an infinite logit in the maximum.
  if (!std::isfinite(max) || !std::isfinite(sum)) return {0, std::numeric_limits<float>::quiet_NaN()};

  std::int64_t token = 0;
  if (greedy) {
    token = argmax(logits, vocab_size);
  } else if (params.top_p < 1 || (params.top_k > 0 && params.top_k < vocab_size) || params.min_p > 0) {
    filter(scratch.p, vocab_size, sum, params, scratch.order);
    token = draw(scratch, u);
  } else {
    token = draw(scratch, vocab_size, sum, u);
  }
  const float z = to_float(logits[token]) * scale;
  return {static_cast<std::int32_t>(token), std::min(0.0f, z - max - static_cast<float>(std::log(sum)))};
}

}  // namespace

at::Tensor sample_cpu(const at::Tensor& logits, const at::Tensor& u, const SamplingParams& params) {
  const std::int64_t rows = logits.size(0), vocab = logits.size(1);
  auto sampled = at::empty({2, rows}, at::kDouble);
  auto* out = ops::data<double>(sampled);
  const auto* decide = ops::data<double>(u);
  ops::by_dtype(logits, [&](auto tag) {
    const auto* all = ops::data<decltype(tag)>(logits);
    const std::int64_t grain = std::max<std::int64_t>(1, 16384 / vocab);
    ops::for_ranges(rows, grain, [&](std::int64_t begin, std::int64_t end) {
      static thread_local SamplerScratch scratch;
      for (std::int64_t i = begin; i < end; ++i) {
        const Choice choice = choose(all + i * vocab, vocab, params, decide[i], scratch);
        out[i] = static_cast<double>(choice.token);
        out[rows + i] = static_cast<double>(choice.logprob);
      }
    });
  });
  return sampled;
}

std::vector<Choice> choices_of(const at::Tensor& sampled) {
  const auto host = sampled.to(at::kCPU).contiguous();
  const std::int64_t count = host.size(1);
  const auto* values = ops::data<double>(host);
  std::vector<Choice> choices;
  choices.reserve(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) {
    choices.push_back({static_cast<std::int32_t>(values[i]), static_cast<float>(values[count + i])});
  }
  return choices;
}

at::Tensor tensor_of(const std::vector<double>& values) {
  return at::from_blob(const_cast<double*>(values.data()), {static_cast<std::int64_t>(values.size())},
                       at::kDouble);
}

}  // namespace rapo
