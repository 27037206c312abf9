#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>

#include <algorithm>

#include "ops/cpu/ops.h"

namespace rapo::ops::cpu {
namespace {

// Float32 weights up to this size are multiplied by our own gemm. They stay in the caches, the overhead of a
// library call would show, and MKL takes a slow path on AMD processors. For larger weights libtorch's product
// is as good or better.
constexpr std::int64_t kSmallWeight = 1 << 17;

bool is_small(const at::Tensor& w) {
  return w.scalar_type() == at::kFloat && w.numel() <= kSmallWeight && w.is_contiguous();
}

void run(const loops::Gemm& g) {
  // A thread pays off from some hundred thousand multiplications on. Ranges are whole register blocks (6
  // rows).
  const std::int64_t grain = (std::int64_t{1} << 20) / std::max<std::int64_t>(g.n * g.k, 1);
  for_ranges(
      g.m, grain, [&](std::int64_t begin, std::int64_t end) { loops::table().gemm(g, begin, end); }, 6);
}

/// Computes a (m, k) b (k, n) in tiles, on the threads, and calls write(c, c_row, i0, rows, j0, columns) for
/// each.
template <class T, class F>
void product_tiles(const loops::Factor<T>& a, std::int64_t m, std::int64_t k, const loops::Factor<T>& b,
                   std::int64_t n, const F& write) {
  const loops::Ops<T>& ops = loops::table().ops<T>();
  constexpr std::int64_t kTileRows = 96, kTilePanels = 16, kLanes = 16;  // the sums of a tile take 98 kB
  const std::int64_t panels = (n + kLanes - 1) / kLanes;
  const auto packed = at::empty({panels * kLanes * k}, at::kFloat);
  for_ranges(panels, std::max<std::int64_t>(1, 4096 / k), [&](std::int64_t begin, std::int64_t end) {
    ops.pack_panels(b, k, n, data<float>(packed), begin, end);
  });
  const std::int64_t down = (m + kTileRows - 1) / kTileRows,
                     across = (panels + kTilePanels - 1) / kTilePanels;
  parallel_for(down * across, [&](std::int64_t t) {
    const std::int64_t i0 = t % down * kTileRows, i1 = std::min(m, i0 + kTileRows);
    const std::int64_t p0 = t / down * kTilePanels, p1 = std::min(panels, p0 + kTilePanels);
    float* c = scratch(kTileRows * kTilePanels * kLanes);
    ops.product(a, k, data<float>(packed), i0, i1, p0, p1, c);
    write(c, (p1 - p0) * kLanes, i0, i1 - i0, p0 * kLanes, std::min(n, p1 * kLanes) - p0 * kLanes);
  });
}

template <class T>
loops::Factor<T> rows_of(const at::Tensor& x) {
  return {data<T>(x), x.stride(0), 1};
}
template <class T>
loops::Factor<T> columns_of(const at::Tensor& x) {
  return {data<T>(x), 1, x.stride(0)};
}

/// y (n, m) = start + (a b)^T with b = x^T; start may be y. `a`, the weights, is read where it lies, row by
/// row.
template <class T>
void transposed_product(const loops::Factor<T>& a, std::int64_t m, std::int64_t k, const at::Tensor& x,
                        const at::Tensor& start, const at::Tensor& y) {
  const std::int64_t n = x.size(0), y_row = y.stride(0);
  const std::int64_t start_row = start.defined() && start.dim() > 1 ? start.stride(0) : 0;
  const auto store = loops::table().ops<T>().store_transposed;
  product_tiles(a, m, k, columns_of<T>(x), n,
                [&](const float* c, std::int64_t c_row, std::int64_t i0, std::int64_t rows, std::int64_t j0,
                    std::int64_t columns) {
                  const T* from = start.defined() ? data<T>(start) + j0 * start_row + i0 : nullptr;
                  store(c, c_row, rows, columns, from, start_row, data<T>(y) + j0 * y_row + i0, y_row);
                });
}

bool has_product(const at::Tensor& x, const at::Tensor& w) {
  return by_dtype(x, [](auto tag) { return loops::has_product<decltype(tag)>(); }) && x.stride(1) == 1 &&
         w.stride(1) == 1;
}

}  // namespace

Linear prepare(const at::Tensor& weight) {
  Linear linear{weight, {}};
  if (is_small(weight)) {
    const std::int64_t n = weight.size(0), k = weight.size(1);
    linear.packed = at::empty({loops::gemm_pack_size(n, k)}, weight.options());
    loops::table().gemm_pack(data<float>(weight), n, k, data<float>(linear.packed));
  }
  return linear;
}

namespace {

/// y (R, N) = start + x w^T; start may be y.
void linear_into(const at::Tensor& y, const at::Tensor& x, const Linear& w, const at::Tensor& start) {
  const std::int64_t m = x.size(0), n = w.weight.size(0), k = w.weight.size(1);
  if (!w.packed.defined())
    return by_dtype(
        y, [&](auto tag) { transposed_product(rows_of<decltype(tag)>(w.weight), n, k, x, start, y); });
  run({m, n, k, data<float>(x), x.stride(0), 1, data<float>(w.packed), 64, 64 * k, true, data<float>(y),
       y.stride(0), start.defined() ? data<float>(start) : nullptr,
       start.defined() && start.dim() > 1 ? start.stride(0) : 0});
}

/// dx (R, K) = start + dy w; start may be dx.
void linear_backward_into(const at::Tensor& dx, const at::Tensor& dy, const at::Tensor& w,
                          const at::Tensor& start) {
  const std::int64_t m = dy.size(0), n = w.size(1), k = w.size(0);
  if (!is_small(w))
    return by_dtype(dx,
                    [&](auto tag) { transposed_product(columns_of<decltype(tag)>(w), n, k, dy, start, dx); });
  run({m, n, k, data<float>(dy), dy.stride(0), 1, data<float>(w), n, 64, false, data<float>(dx), dx.stride(0),
       start.defined() ? data<float>(start) : nullptr, start.defined() ? start.stride(0) : 0});
}

bool is_own(const at::Tensor& x, const Linear& w) { return w.packed.defined() || has_product(x, w.weight); }
bool is_own(const at::Tensor& dy, const at::Tensor& w) { return is_small(w) || has_product(dy, w); }

}  // namespace

at::Tensor linear(const at::Tensor& x, const Linear& w, const at::Tensor& start) {
  if (!is_own(x, w)) return start.defined() ? at::addmm(start, x, w.weight.t()) : at::mm(x, w.weight.t());
  auto y = at::empty({x.size(0), w.weight.size(0)}, x.options());
  linear_into(y, x, w, start);
  return y;
}

void add_linear(at::Tensor& y, const at::Tensor& x, const Linear& w) {
  if (is_own(x, w)) {
    linear_into(y, x, w, y);
  } else {
    y.addmm_(x, w.weight.t());
  }
}

at::Tensor linear_backward(const at::Tensor& dy, const at::Tensor& w) {
  if (!is_own(dy, w)) return at::mm(dy, w);
  auto dx = at::empty({dy.size(0), w.size(1)}, dy.options());
  linear_backward_into(dx, dy, w, {});
  return dx;
}

void add_linear_backward(at::Tensor& dx, const at::Tensor& dy, const at::Tensor& w) {
  if (is_own(dy, w)) {
    linear_backward_into(dx, dy, w, dx);
  } else {
    dx.addmm_(dy, w);
  }
}

void add_weight_grad(at::Tensor& grad, const at::Tensor& dy, const at::Tensor& x) {
  if ((x.scalar_type() != at::kFloat || !is_small(grad)) && has_product(x, dy)) {
    const std::int64_t m = grad.size(0), n = grad.size(1);
    by_dtype(x, [&](auto tag) {
      using T = decltype(tag);
      product_tiles(columns_of<T>(dy), m, dy.size(0), rows_of<T>(x), n,
                    [&](const float* c, std::int64_t c_row, std::int64_t i0, std::int64_t rows,
                        std::int64_t j0, std::int64_t columns) {
                      loops::table().add_tile(c, c_row, rows, columns, data<float>(grad) + i0 * n + j0, n);
                    });
    });
  } else if (x.scalar_type() != at::kFloat) {
    grad.add_(at::mm(dy.t(), x));
  } else if (is_small(grad)) {
    const std::int64_t m = grad.size(0), n = grad.size(1);
    run({m, n, dy.size(0), data<float>(dy), 1, dy.stride(0), data<float>(x), x.stride(0), 64, false,
         data<float>(grad), n, data<float>(grad), n});
  } else {
    grad.addmm_(dy.t(), x);
  }
}

}  // namespace rapo::ops::cpu
