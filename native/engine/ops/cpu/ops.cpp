#include "ops/cpu/ops.h"

#include <algorithm>
#include <cstring>
#include <functional>

namespace rapo::ops {
namespace cpu {
namespace {

/// The number of rows of that width from which a thread pays off, for elementwise work.
std::int64_t row_grain(std::int64_t width) {
  return std::max<std::int64_t>(1, 32768 / std::max<std::int64_t>(width, 1));
}

at::Tensor empty_like_rows(const at::Tensor& x, std::int64_t width) {
  return at::empty({x.size(0), width}, x.options());
}

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& w, double eps, at::Tensor* rstd) {
  const std::int64_t rows = x.size(0), channels = x.size(1);
  auto y = at::empty_like(x);
  if (rstd) *rstd = at::empty({rows}, at::kFloat);
  by_dtype(x, [&](auto tag) {
    using T = decltype(tag);
    const auto f = loops::table().ops<T>().rms_norm;
    for_ranges(rows, row_grain(channels), [&](std::int64_t begin, std::int64_t end) {
      f(data<T>(x), data<T>(w), static_cast<float>(eps), channels, data<T>(y),
        rstd ? data<float>(*rstd) : nullptr, begin, end);
    });
  });
  return y;
}

void rms_norm_backward(const at::Tensor& x, const at::Tensor& w, const at::Tensor& rstd, const at::Tensor& dy,
                       at::Tensor& dx, at::Tensor& dw) {
  // dw is summed in blocks of fixed size, which are added in order, so that the bits do not depend on the
  // threads.
  constexpr std::int64_t kBlock = 128;
  const std::int64_t rows = x.size(0), channels = x.size(1), blocks = (rows + kBlock - 1) / kBlock;
  auto partial = at::zeros({blocks, channels}, at::kFloat);
  by_dtype(x, [&](auto tag) {
    using T = decltype(tag);
    const auto f = loops::table().ops<T>().rms_norm_backward;
    for_ranges(blocks, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t b = begin; b < end; ++b) {
        f(data<T>(x), data<T>(w), data<float>(rstd), data<T>(dy), channels, data<T>(dx),
          data<float>(partial) + b * channels, b * kBlock, std::min(rows, (b + 1) * kBlock));
      }
    });
  });
  if (!dw.defined()) return;
  auto* out = data<float>(dw);
  for (std::int64_t b = 0; b < blocks; ++b) {
    const auto* from = data<float>(partial) + b * channels;
    for (std::int64_t c = 0; c < channels; ++c) out[c] += from[c];
  }
}

/// Calls f(weight, first, end) for the query heads and for the key heads: rows [first, end) of a token whose
/// heads lie end to end.
template <class F>
void for_normed_heads(const loops::HeadShape& s, const at::Tensor& q_norm, const at::Tensor& k_norm,
                      const F& f) {
  f(q_norm, std::int64_t{0}, s.heads);
  f(k_norm, s.heads, s.heads + s.kv_heads);
}

at::Tensor head_norm(const loops::HeadShape& shape, const at::Tensor& qkv, const at::Tensor& q_norm,
                     const at::Tensor& k_norm, double eps, at::Tensor* rstd) {
  const std::int64_t tokens = qkv.size(0), width = qkv.size(1), normed = shape.heads + shape.kv_heads;
  auto out = at::empty_like(qkv);
  if (rstd) *rstd = at::empty({tokens, normed}, at::kFloat);
  by_dtype(qkv, [&](auto tag) {
    using T = decltype(tag);
    const auto f = loops::table().ops<T>().rms_norm;
    for_ranges(tokens, row_grain(width), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin; t < end; ++t) {
        const T* from = data<T>(qkv) + t * width;
        T* to = data<T>(out) + t * width;
        for_normed_heads(shape, q_norm, k_norm,
                         [&](const at::Tensor& w, std::int64_t first, std::int64_t last) {
                           f(from, data<T>(w), static_cast<float>(eps), shape.head_dim, to,
                             rstd ? data<float>(*rstd) + t * normed : nullptr, first, last);
                         });
        std::copy(from + normed * shape.head_dim, from + width, to + normed * shape.head_dim);
      }
    });
  });
  return out;
}

at::Tensor head_norm_backward(const loops::HeadShape& shape, const at::Tensor& qkv, const at::Tensor& q_norm,
                              const at::Tensor& k_norm, const at::Tensor& rstd, const at::Tensor& dy,
                              at::Tensor& dq_norm, at::Tensor& dk_norm) {
  constexpr std::int64_t kBlock = 128;  // as in rms_norm_backward()
  const std::int64_t tokens = qkv.size(0), width = qkv.size(1), normed = shape.heads + shape.kv_heads;
  const std::int64_t blocks = (tokens + kBlock - 1) / kBlock, dim = shape.head_dim;
  auto out = at::zeros_like(qkv);
  auto partial = at::zeros({blocks, 2, dim}, at::kFloat);
  by_dtype(qkv, [&](auto tag) {
    using T = decltype(tag);
    const auto f = loops::table().ops<T>().rms_norm_backward;
    for_ranges(blocks, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t t = begin * kBlock; t < std::min(tokens, end * kBlock); ++t) {
        const T* grad = data<T>(dy) + t * width;
        T* to = data<T>(out) + t * width;
        for_normed_heads(
            shape, q_norm, k_norm, [&](const at::Tensor& w, std::int64_t first, std::int64_t last) {
              f(data<T>(qkv) + t * width, data<T>(w), data<float>(rstd) + t * normed, grad, dim, to,
                data<float>(partial) + (2 * (t / kBlock) + (first == 0 ? 0 : 1)) * dim, first, last);
            });
        std::copy(grad + normed * dim, grad + width, to + normed * dim);
      }
    });
  });
  for (std::int64_t b = 0; b < blocks && dq_norm.defined(); ++b) {
    const auto* from = data<float>(partial) + 2 * b * dim;
    for (std::int64_t c = 0; c < dim; ++c) {
      data<float>(dq_norm)[c] += from[c];
      data<float>(dk_norm)[c] += from[dim + c];
    }
  }
  return out;
}

at::Tensor swiglu(const at::Tensor& gate_up) {
  const std::int64_t width = gate_up.size(1) / 2;
  auto out = empty_like_rows(gate_up, width);
  by_dtype(gate_up, [&](auto tag) {
    using T = decltype(tag);
    const auto f = loops::table().ops<T>().swiglu;
    for_ranges(gate_up.size(0), row_grain(2 * width), [&](std::int64_t begin, std::int64_t end) {
      f(data<T>(gate_up), width, data<T>(out), begin, end);
    });
  });
  return out;
}

at::Tensor swiglu_backward(const at::Tensor& gate_up, const at::Tensor& dout) {
  const std::int64_t width = gate_up.size(1) / 2;
  auto dgate_up = at::empty_like(gate_up);
  by_dtype(gate_up, [&](auto tag) {
    using T = decltype(tag);
    const auto f = loops::table().ops<T>().swiglu_backward;
    for_ranges(gate_up.size(0), row_grain(2 * width), [&](std::int64_t begin, std::int64_t end) {
      f(data<T>(gate_up), data<T>(dout), width, data<T>(dgate_up), begin, end);
    });
  });
  return dgate_up;
}

/// Calls f(family, kv_head) for every pair, on the threads.
template <class F>
void for_each_unit(const TrunkInput& input, std::int64_t kv_heads, const F& f) {
  const std::int64_t units = static_cast<std::int64_t>(input.families.size()) * kv_heads;
  const auto rows = static_cast<std::int64_t>(input.token_ids.size());
  // A thread pays off from some hundred tokens on.
  const std::int64_t grain =
      std::max<std::int64_t>(1, 256 * units / std::max<std::int64_t>(rows * kv_heads, 1));
  for_ranges(units, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t u = begin; u < end; ++u)
      f(input.families[static_cast<std::size_t>(u / kv_heads)], u % kv_heads);
  });
}

at::Tensor attention(const loops::HeadShape& shape, const TrunkInput& input, const Rope& rope,
                     const at::Tensor& qkv, at::Tensor* lse, at::Tensor* kv) {
  const std::int64_t q_size = shape.heads * shape.head_dim, kv_width = 2 * shape.kv_heads * shape.head_dim;
  auto out = empty_like_rows(qkv, q_size);
  if (lse) *lse = at::empty({qkv.size(0), shape.heads}, at::kFloat);
  if (kv) *kv = empty_like_rows(qkv, kv_width);
  const std::int64_t floats = loops::attention_scratch(shape, input.longest);
  by_dtype(qkv, [&](auto tag) {
    using T = decltype(tag);
    const auto f = loops::table().ops<T>().attention;
    for_each_unit(input, shape.kv_heads, [&](const Family& family, std::int64_t kv_head) {
      const std::int64_t at = family.begin;
      f(shape, family.lengths.data(), static_cast<std::int64_t>(family.lengths.size()), kv_head,
        data<T>(qkv) + at * qkv.size(1), data<float>(rope.cos), data<float>(rope.sin),
        data<T>(out) + at * q_size, lse ? data<float>(*lse) + at * shape.heads : nullptr,
        kv ? data<T>(*kv) + at * kv_width : nullptr, scratch(floats));
    });
  });
  return out;
}

at::Tensor attention_backward(const loops::HeadShape& shape, const TrunkInput& input, const Rope& rope,
                              const at::Tensor& qkv, const at::Tensor& out, const at::Tensor& lse,
                              const at::Tensor& dout) {
  const std::int64_t q_size = shape.heads * shape.head_dim;
  auto dqkv = at::empty_like(qkv);
  const std::int64_t floats = loops::attention_scratch(shape, input.longest);
  by_dtype(qkv, [&](auto tag) {
    using T = decltype(tag);
    const auto f = loops::table().ops<T>().attention_backward;
    for_each_unit(input, shape.kv_heads, [&](const Family& family, std::int64_t kv_head) {
      const std::int64_t at = family.begin;
      f(shape, family.lengths.data(), static_cast<std::int64_t>(family.lengths.size()), kv_head,
        data<T>(qkv) + at * qkv.size(1), data<float>(rope.cos), data<float>(rope.sin),
        data<T>(out) + at * q_size, data<float>(lse) + at * shape.heads, data<T>(dout) + at * q_size,
        data<T>(dqkv) + at * qkv.size(1), scratch(floats));
    });
  });
  return dqkv;
}

template <class Index>
at::Tensor take_rows(const at::Tensor& table, const Index* rows, std::int64_t count) {
  const std::int64_t channels = table.size(1);
  auto out = at::empty({count, channels}, table.options());
  const std::size_t bytes = static_cast<std::size_t>(channels) * table.element_size();
  const auto* from = data<char>(table);
  auto* to = data<char>(out);
  for_ranges(count, row_grain(channels), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      std::memcpy(to + static_cast<std::size_t>(i) * bytes, from + static_cast<std::size_t>(rows[i]) * bytes,
                  bytes);
    }
  });
  return out;
}

at::Tensor embed(const at::Tensor& table, const std::int32_t* token_ids, std::int64_t count) {
  return take_rows(table, token_ids, count);
}

at::Tensor gather_rows(const at::Tensor& x, const std::int64_t* rows, std::int64_t count) {
  return take_rows(x, rows, count);
}

at::Tensor spread_rows(const at::Tensor& rows, const std::vector<std::int64_t>& positions,
                       std::int64_t total) {
  auto out = at::zeros({total, rows.size(1)}, rows.options());
  const auto count = static_cast<std::int64_t>(positions.size());
  if (std::adjacent_find(positions.begin(), positions.end(), std::greater_equal<>()) != positions.end()) {
    const auto index = at::from_blob(const_cast<std::int64_t*>(positions.data()), {count}, at::kLong);
    return out.index_add_(0, index, rows);
  }
  const std::size_t bytes = static_cast<std::size_t>(rows.size(1)) * rows.element_size();
  const auto* from = data<char>(rows);
  auto* to = data<char>(out);
  for_ranges(count, row_grain(rows.size(1)), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      const auto n = static_cast<std::size_t>(i);
      std::memcpy(to + static_cast<std::size_t>(positions[n]) * bytes, from + n * bytes, bytes);
    }
  });
  return out;
}

void embed_backward(at::Tensor& table, const std::int32_t* token_ids, const at::Tensor& x) {
  const std::int64_t channels = x.size(1), rows = x.size(0);
  by_dtype(x, [&](auto tag) {
    using T = decltype(tag);
    const auto f = loops::table().ops<T>().scatter_add;
    // Threads share out the channels, not the rows, so that each sum is added up in one order.
    const std::int64_t grain = std::max<std::int64_t>(64, 65536 / std::max<std::int64_t>(rows, 1));
    for_ranges(channels, grain, [&](std::int64_t begin, std::int64_t end) {
      f(token_ids, rows, data<T>(x), channels, data<float>(table), begin, end);
    });
  });
}

}  // namespace

at::Tensor cache_blocks(const loops::HeadShape& shape, const at::Tensor& kv) {
  constexpr std::int64_t kBlock = loops::kCacheBlock;
  const std::int64_t length = kv.size(0), kv_size = shape.kv_heads * shape.head_dim;
  const std::int64_t blocks = (length + kBlock - 1) / kBlock;
  // (blocks, kBlock, 2, K D); positions beyond the end are 0.
  auto rows = at::zeros({blocks * kBlock, 2 * kv_size}, kv.options());
  rows.narrow(0, 0, length).copy_(kv);
  rows = rows.view({blocks, kBlock, 2, kv_size});
  auto out = at::empty({blocks, 2, kv_size * kBlock}, kv.options());
  out.select(1, 0).view({blocks, kv_size, kBlock}).copy_(rows.select(2, 0).transpose(1, 2));
  out.select(1, 1).view({blocks, kBlock, kv_size}).copy_(rows.select(2, 1));
  return out;
}

at::Tensor decode_attention(const loops::HeadShape& shape,
                            const std::vector<const std::vector<void*>*>& blocks,
                            const std::vector<std::int64_t>& positions, const Rope& rope,
                            const at::Tensor& qkv, std::int64_t layer_offset) {
  const std::int64_t q_size = shape.heads * shape.head_dim, rows = qkv.size(0);
  auto out = empty_like_rows(qkv, q_size);
  std::int64_t last = 0;
  for (const auto p : positions) last = std::max(last, p);
  const std::int64_t floats = loops::decode_scratch(shape, last + 1);
  const std::int64_t grain = std::max<std::int64_t>(1, 32768 / ((last + 1) * q_size));
  by_dtype(qkv, [&](auto tag) {
    using T = decltype(tag);
    const auto f = loops::table().ops<T>().decode_attention;
    for_ranges(rows, grain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        const auto n = static_cast<std::size_t>(i);
        f(shape, positions[n], data<T>(qkv) + i * qkv.size(1), data<float>(rope.cos), data<float>(rope.sin),
          blocks[n]->data(), layer_offset, data<T>(out) + i * q_size, scratch(floats));
      }
    });
  });
  return out;
}

}  // namespace cpu

const Backend& cpu_backend() {
  static const Backend backend = {
      "cpu",
      true,
      cpu::rms_norm,
      cpu::rms_norm_backward,
      cpu::head_norm,
      cpu::head_norm_backward,
      cpu::swiglu,
      cpu::swiglu_backward,
      cpu::attention,
      cpu::attention_backward,
      cpu::embed,
      cpu::embed_backward,
      cpu::gather_rows,
      cpu::spread_rows,
      cpu::prepare,
      cpu::linear,
      cpu::add_linear,
      cpu::linear_backward,
      cpu::add_linear_backward,
      cpu::add_weight_grad,
      cpu::norm_of,
      cpu::adamw,
      cpu::round_weights,
      cpu::round_randomly,
  };
  return backend;
}

}  // namespace rapo::ops
