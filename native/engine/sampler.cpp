#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "cpu/loops.h"

namespace rapo {
namespace {

float widen(float x) { return x; }
float widen(loops::BFloat16 x) {
  const std::uint32_t bits = static_cast<std::uint32_t>(x.bits) << 16;
  float out;
  __builtin_memcpy(&out, &bits, 4);
  return out;
}

/// The tokens that the filters leave, most probable first; p are unnormalised probabilities with maximum 1.
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

  // Sorts as many of the best as the filters can ask for: doubling until top-p is reached spares the whole
  // sort.
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
  } else {  // min-p alone: no order is needed, ids ascend
    const auto below = [&](std::int32_t v) {
      return static_cast<double>(p[static_cast<std::size_t>(v)]) < params.min_p;
    };
    order.erase(std::remove_if(order.begin(), order.end(), below), order.end());
  }
}

}  // namespace

std::array<std::uint32_t, 4> philox(std::uint64_t key, std::uint64_t counter_high,
                                    std::uint64_t counter_low) {
  std::uint32_t k0 = static_cast<std::uint32_t>(key), k1 = static_cast<std::uint32_t>(key >> 32);
  std::array<std::uint32_t, 4> c = {
      static_cast<std::uint32_t>(counter_low), static_cast<std::uint32_t>(counter_low >> 32),
      static_cast<std::uint32_t>(counter_high), static_cast<std::uint32_t>(counter_high >> 32)};
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t a = std::uint64_t{0xD2511F53} * c[0];
    const std::uint64_t b = std::uint64_t{0xCD9E8D57} * c[2];
    c = {static_cast<std::uint32_t>(b >> 32) ^ c[1] ^ k0, static_cast<std::uint32_t>(b),
         static_cast<std::uint32_t>(a >> 32) ^ c[3] ^ k1, static_cast<std::uint32_t>(a)};
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return c;
}

double uniform(std::uint64_t seed, std::uint64_t stream, std::uint64_t index) {
  const auto words = philox(seed, stream, index);
  const std::uint64_t bits = (static_cast<std::uint64_t>(words[0]) << 32) | words[1];
  return static_cast<double>(bits >> 11) * 0x1.0p-53;
}

template <class T>
Choice choose(const T* logits, std::int64_t vocab_size, const SamplingParams& params, double u,
              SamplerScratch& scratch) {
  if (static_cast<std::int64_t>(scratch.p.size()) < vocab_size)
    scratch.p.resize(static_cast<std::size_t>(vocab_size));
  const bool greedy = params.temperature == 0;
  const float scale = greedy ? 1.0f : static_cast<float>(1 / params.temperature);
  double sum = 0;
  const float max = loops::table().ops<T>().exp_row(logits, vocab_size, scale, scratch.p.data(), &sum);
  // A NaN reaches the sum, an infinite logit the maximum.
  if (!std::isfinite(max) || !std::isfinite(sum)) {
    throw Error(ErrorCode::kNonFinite, "the model's logits hold NaN or an infinity");
  }

  std::int64_t token = -1;
  if (greedy) {
    token = std::max_element(scratch.p.begin(), scratch.p.begin() + vocab_size) - scratch.p.begin();
    // Neighbouring logits can share a rounded exp; the logits themselves decide.
    for (std::int64_t v = 0; v < vocab_size; ++v) {
      if (widen(logits[v]) > widen(logits[token]) || (v < token && widen(logits[v]) == widen(logits[token])))
        token = v;
    }
  } else if (params.top_p < 1 || (params.top_k > 0 && params.top_k < vocab_size) || params.min_p > 0) {
    filter(scratch.p, vocab_size, sum, params, scratch.order);
    double left = 0;
    for (const auto v : scratch.order) left += static_cast<double>(scratch.p[static_cast<std::size_t>(v)]);
    left *= u;
    for (const auto v : scratch.order) {
      const double p = static_cast<double>(scratch.p[static_cast<std::size_t>(v)]);
      if (p > 0) token = v;  // rounding may leave `left` above the last sum: the last possible token then
      left -= p;
      if (left < 0) break;
    }
  } else {
    double left = u * sum;
    for (std::int64_t v = 0; v < vocab_size; ++v) {
      const double p = static_cast<double>(scratch.p[static_cast<std::size_t>(v)]);
      if (p > 0) token = v;
      left -= p;
      if (left < 0) break;
    }
  }
  const float z = widen(logits[token]) * scale;
  return {static_cast<std::int32_t>(token), std::min(0.0f, z - max - static_cast<float>(std::log(sum)))};
}

template Choice choose<float>(const float*, std::int64_t, const SamplingParams&, double, SamplerScratch&);
template Choice choose<loops::BFloat16>(const loops::BFloat16*, std::int64_t, const SamplingParams&, double,
                                        SamplerScratch&);

}  // namespace rapo
