#include "ops/ops.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>

#include "ops/ops_aten.h"

namespace rapo::ops {
namespace {

using loops::BFloat16;

/// Calls f(T{}) with T the element type: float or BFloat16.
template <class F>
decltype(auto) by_dtype(const at::Tensor& x, F&& f) {
  return x.scalar_type() == at::kFloat ? f(float{}) : f(BFloat16{});
}

template <class T>
T* data(const at::Tensor& x) {
  return static_cast<T*>(x.data_ptr());
}

/// Rows worth a thread of their own, for elementwise work on rows of that many elements.
std::int64_t row_grain(std::int64_t width) {
  return std::max<std::int64_t>(1, 32768 / std::max<std::int64_t>(width, 1));
}

float* scratch(std::int64_t floats) {
  static thread_local std::vector<float> buffer;
  if (static_cast<std::int64_t>(buffer.size()) < floats) buffer.resize(static_cast<std::size_t>(floats));
  return buffer.data();
}

at::Tensor empty_like_rows(const at::Tensor& x, std::int64_t width) {
  return at::empty({x.size(0), width}, x.options());
}

}  // namespace

bool on_aten(const at::Tensor& x) {
  static const bool all = [] {
    const char* wanted = std::getenv("RAPO_ENGINE_ISA");
    return wanted && std::strcmp(wanted, "aten") == 0;
  }();
  return all || !x.is_cpu();
}

Rope make_rope(std::int64_t positions, std::int64_t head_dim, double theta, at::ScalarType dtype) {
  const std::int64_t half = head_dim / 2;
  Rope rope{at::empty({positions, half}, at::kFloat), at::empty({positions, half}, at::kFloat)};
  std::vector<float> frequencies(static_cast<std::size_t>(half));
  for (std::int64_t i = 0; i < half; ++i) {
    // float32 powers and products, as transformers forms them.
    frequencies[static_cast<std::size_t>(i)] =
        1.0f / std::pow(static_cast<float>(theta), static_cast<float>(2 * i) / static_cast<float>(head_dim));
  }
  auto* cos = rope.cos.data_ptr<float>();
  auto* sin = rope.sin.data_ptr<float>();
  for (std::int64_t t = 0; t < positions; ++t) {
    for (std::int64_t i = 0; i < half; ++i) {
      const float angle = static_cast<float>(t) * frequencies[static_cast<std::size_t>(i)];
      cos[t * half + i] = std::cos(angle);
      sin[t * half + i] = std::sin(angle);
    }
  }
  if (dtype != at::kFloat) {
    rope.cos = rope.cos.to(dtype).to(at::kFloat);
    rope.sin = rope.sin.to(dtype).to(at::kFloat);
  }
  return rope;
}

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& w, double eps, at::Tensor* rstd) {
  if (on_aten(x)) return aten::rms_norm(x, w, eps, rstd);
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
  if (on_aten(x)) return aten::rms_norm_backward(x, w, rstd, dy, dx, dw);
  // dw is summed in blocks of fixed size, added in order: the same bits whoever computes a block.
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
  auto* out = data<float>(dw);
  for (std::int64_t b = 0; b < blocks; ++b) {
    const auto* from = data<float>(partial) + b * channels;
    for (std::int64_t c = 0; c < channels; ++c) out[c] += from[c];
  }
}

at::Tensor swiglu(const at::Tensor& gate_up) {
  if (on_aten(gate_up)) return aten::swiglu(gate_up);
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
  if (on_aten(gate_up)) return aten::swiglu_backward(gate_up, dout);
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

namespace {

/// Calls f(family, kv_head) for every pair, over threads.
template <class F>
void for_each_unit(const TrunkInput& input, std::int64_t kv_heads, const F& f) {
  const std::int64_t units = static_cast<std::int64_t>(input.families.size()) * kv_heads;
  const auto rows = static_cast<std::int64_t>(input.token_ids.size());
  // A thread is worth it from some hundred tokens on.
  const std::int64_t grain =
      std::max<std::int64_t>(1, 256 * units / std::max<std::int64_t>(rows * kv_heads, 1));
  for_ranges(units, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t u = begin; u < end; ++u)
      f(input.families[static_cast<std::size_t>(u / kv_heads)], u % kv_heads);
  });
}

}  // namespace

at::Tensor attention(const loops::HeadShape& shape, const TrunkInput& input, const Rope& rope,
                     const at::Tensor& qkv, at::Tensor* lse, at::Tensor* kv) {
  if (on_aten(qkv)) return aten::attention(shape, input, rope, qkv, lse, kv);
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
  if (on_aten(qkv)) return aten::attention_backward(shape, input, rope, qkv, out, lse, dout);
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

at::Tensor cache_blocks(const loops::HeadShape& shape, const at::Tensor& kv) {
  constexpr std::int64_t kBlock = loops::kCacheBlock;
  const std::int64_t length = kv.size(0), kv_size = shape.kv_heads * shape.head_dim;
  const std::int64_t blocks = (length + kBlock - 1) / kBlock;
  // (blocks, kBlock, 2, K D), zeros behind the end
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

namespace {

template <class Index>
at::Tensor gather(const at::Tensor& table, const Index* ids, std::int64_t count) {
  if (on_aten(table)) return table.index_select(0, aten::indices(ids, count, table));
  const std::int64_t channels = table.size(1);
  auto out = at::empty({count, channels}, table.options());
  const std::size_t bytes = static_cast<std::size_t>(channels) * table.element_size();
  const auto* from = data<char>(table);
  auto* to = data<char>(out);
  for_ranges(count, row_grain(channels), [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) {
      std::memcpy(to + static_cast<std::size_t>(i) * bytes, from + static_cast<std::size_t>(ids[i]) * bytes,
                  bytes);
    }
  });
  return out;
}

}  // namespace

at::Tensor gather_rows(const at::Tensor& table, const std::int32_t* ids, std::int64_t count) {
  return gather(table, ids, count);
}
at::Tensor gather_rows(const at::Tensor& table, const std::int64_t* ids, std::int64_t count) {
  return gather(table, ids, count);
}

at::Tensor spread_rows(const at::Tensor& rows, const std::vector<std::int64_t>& positions,
                       std::int64_t total) {
  if (on_aten(rows)) return aten::spread_rows(rows, positions, total);
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

void scatter_add_rows(at::Tensor& table, const std::int32_t* ids, const at::Tensor& x) {
  if (on_aten(x)) return aten::scatter_add_rows(table, ids, x);
  const std::int64_t channels = x.size(1), rows = x.size(0);
  by_dtype(x, [&](auto tag) {
    using T = decltype(tag);
    const auto f = loops::table().ops<T>().scatter_add;
    // Threads share the channels, not the rows: each sum then has one order.
    const std::int64_t grain = std::max<std::int64_t>(64, 65536 / std::max<std::int64_t>(rows, 1));
    for_ranges(channels, grain, [&](std::int64_t begin, std::int64_t end) {
      f(ids, rows, data<T>(x), channels, data<float>(table), begin, end);
    });
  });
}

namespace {

// Up to this size a float32 weight goes through our own product: it stays in the caches, a library call's
// overhead shows, and MKL takes a slow path on AMD. Beyond it libtorch's is as good or better.
constexpr std::int64_t kSmallWeight = 1 << 17;

bool is_small(const at::Tensor& w) {
  return w.scalar_type() == at::kFloat && w.numel() <= kSmallWeight && w.is_contiguous();
}

void run(const loops::Gemm& g) {
  // A thread is worth some hundred thousand products; ranges of whole register blocks (6 rows).
  const std::int64_t grain = (std::int64_t{1} << 20) / std::max<std::int64_t>(g.n * g.k, 1);
  for_ranges(
      g.m, grain, [&](std::int64_t begin, std::int64_t end) { loops::table().gemm(g, begin, end); }, 6);
}

/// Calls write(c, c_row, i0, rows, j0, columns), on threads, for tiles that cover a (m, k) b (k, n).
template <class F>
void product_tiles(const loops::Factor& a, std::int64_t m, std::int64_t k, const loops::Factor& b,
                   std::int64_t n, const F& write) {
  constexpr std::int64_t kTileRows = 96, kTilePanels = 16, kLanes = 16;  // a tile of sums: 98 kB
  const std::int64_t panels = (n + kLanes - 1) / kLanes;
  const auto packed = at::empty({panels * kLanes * k}, at::kFloat);
  for_ranges(panels, std::max<std::int64_t>(1, 4096 / k), [&](std::int64_t begin, std::int64_t end) {
    loops::table().pack_panels(b, k, n, data<float>(packed), begin, end);
  });
  const std::int64_t down = (m + kTileRows - 1) / kTileRows,
                     across = (panels + kTilePanels - 1) / kTilePanels;
  parallel_for(down * across, [&](std::int64_t t) {
    const std::int64_t i0 = t % down * kTileRows, i1 = std::min(m, i0 + kTileRows);
    const std::int64_t p0 = t / down * kTilePanels, p1 = std::min(panels, p0 + kTilePanels);
    float* c = scratch(kTileRows * kTilePanels * kLanes);
    loops::table().product(a, k, data<float>(packed), i0, i1, p0, p1, c);
    write(c, (p1 - p0) * kLanes, i0, i1 - i0, p0 * kLanes, std::min(n, p1 * kLanes) - p0 * kLanes);
  });
}

loops::Factor rows_of(const at::Tensor& x) {
  return {x.data_ptr(), x.scalar_type() != at::kFloat, x.stride(0), 1};
}
loops::Factor columns_of(const at::Tensor& x) {
  return {x.data_ptr(), x.scalar_type() != at::kFloat, 1, x.stride(0)};
}

/// y (n, m) = start + the transpose of a b: the weights, a, are read where they lie, row by row.
at::Tensor transposed_product(const loops::Factor& a, std::int64_t m, std::int64_t k, const at::Tensor& x,
                              const at::Tensor& start) {
  const std::int64_t n = x.size(0);
  auto y = at::empty({n, m}, x.options());
  const std::int64_t start_row = start.defined() && start.dim() > 1 ? start.stride(0) : 0;
  by_dtype(y, [&](auto tag) {
    using T = decltype(tag);
    const auto store = loops::table().ops<T>().store_transposed;
    product_tiles(a, m, k, columns_of(x), n,
                  [&](const float* c, std::int64_t c_row, std::int64_t i0, std::int64_t rows, std::int64_t j0,
                      std::int64_t columns) {
                    const T* from = start.defined() ? data<T>(start) + j0 * start_row + i0 : nullptr;
                    store(c, c_row, rows, columns, from, start_row, data<T>(y) + j0 * m + i0, m);
                  });
  });
  return y;
}

bool has_product(const at::Tensor& x, const at::Tensor& w) {
  return loops::has_product(x.scalar_type() != at::kFloat) && x.stride(1) == 1 && w.stride(1) == 1;
}

}  // namespace

Linear prepare(const at::Tensor& weight) {
  Linear linear{weight, {}};
  if (on_aten(weight)) return linear;
  if (is_small(weight)) {
    const std::int64_t n = weight.size(0), k = weight.size(1);
    linear.packed = at::empty({loops::gemm_pack_size(n, k)}, weight.options());
    loops::table().gemm_pack(data<float>(weight), n, k, data<float>(linear.packed));
  }
  return linear;
}

at::Tensor linear(const at::Tensor& x, const Linear& w, const at::Tensor& start) {
  if (on_aten(x)) return aten::linear(x, w.weight, start);
  if (!w.packed.defined() && has_product(x, w.weight)) {
    return transposed_product(rows_of(w.weight), w.weight.size(0), w.weight.size(1), x, start);
  }
  if (!w.packed.defined())
    return start.defined() ? at::addmm(start, x, w.weight.t()) : at::mm(x, w.weight.t());
  const std::int64_t m = x.size(0), n = w.weight.size(0), k = w.weight.size(1);
  auto y = at::empty({m, n}, x.options());
  run({m, n, k, data<float>(x), k, 1, data<float>(w.packed), 64, 64 * k, true, data<float>(y), n,
       start.defined() ? data<float>(start) : nullptr, start.defined() && start.dim() > 1 ? n : 0});
  return y;
}

at::Tensor linear_backward(const at::Tensor& dy, const at::Tensor& w) {
  if (on_aten(dy)) return aten::linear_backward(dy, w);
  if (!is_small(w) && has_product(dy, w)) {
    return transposed_product(columns_of(w), w.size(1), w.size(0), dy, {});
  }
  if (!is_small(w)) return at::mm(dy, w);
  const std::int64_t m = dy.size(0), n = w.size(1), k = w.size(0);
  auto dx = at::empty({m, n}, dy.options());
  run({m, n, k, data<float>(dy), k, 1, data<float>(w), n, 64, false, data<float>(dx), n, nullptr, 0});
  return dx;
}

void add_weight_grad(at::Tensor& grad, const at::Tensor& dy, const at::Tensor& x) {
  if (on_aten(x)) return aten::add_weight_grad(grad, dy, x);
  if ((x.scalar_type() != at::kFloat || !is_small(grad)) && has_product(x, dy)) {
    const std::int64_t m = grad.size(0), n = grad.size(1);
    product_tiles(columns_of(dy), m, dy.size(0), rows_of(x), n,
                  [&](const float* c, std::int64_t c_row, std::int64_t i0, std::int64_t rows, std::int64_t j0,
                      std::int64_t columns) {
                    loops::table().add_tile(c, c_row, rows, columns, data<float>(grad) + i0 * n + j0, n);
                  });
  } else if (x.scalar_type() != at::kFloat) {
    grad.add_(at::mm(dy.t(), x));
  } else if (is_small(grad)) {
    const std::int64_t m = grad.size(0), n = grad.size(1);
    run({m, n, dy.size(0), data<float>(dy), 1, m, data<float>(x), n, 64, false, data<float>(grad), n,
         data<float>(grad), n});
  } else {
    grad.addmm_(dy.t(), x);
  }
}

void add_bias_grad(at::Tensor& grad, const at::Tensor& dy) { grad.add_(at::sum(dy, {0}, false, at::kFloat)); }

}  // namespace rapo::ops
