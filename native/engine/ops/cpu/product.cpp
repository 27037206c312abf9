#include "vec.h"

namespace rapo::loops {
namespace RAPO_ISA {
namespace {

// Registers hold a block of sums. With 16 registers of 8 floats, 6 x 16 sums take twelve; two hold a row of b
// and one a number of a. With 32 registers of 16 floats, 12 x 16 sums hide the latency of two units.
#if defined(__AVX512F__)
constexpr int kProductRows = 12;
#else
constexpr int kProductRows = 6;
#endif
#if defined(__AVX2__)
constexpr bool kHasProduct = true;
#else
constexpr bool kHasProduct = false;
#endif
constexpr i64 kProductDepth = 256;  // a panel of b then takes half of a first-level cache

/// c (R, 16) = a b, or += a b with `add`; rows of c lie c_row apart; b (depth, 16). Element (r, k) of a is
/// a[r * a_row + k], or a[kProductRows k + r] if packed.
template <int R, bool packed>
RAPO_INLINE void product_block(const float* a, i64 a_row, const float* b, i64 depth, float* c, i64 c_row,
                               bool add) {
  Vec acc[R] = {};
  for (i64 k = 0; k < depth; ++k) {
    const Vec v = load(b + k * kLanes);
    for (int r = 0; r < R; ++r) acc[r] += v * (packed ? a[k * kProductRows + r] : a[r * a_row + k]);
  }
  // Sums of partial sums: one chain of thousands of additions would lose twice as much to rounding.
  for (int r = 0; r < R; ++r) store(c + r * c_row, add ? load(c + r * c_row) + acc[r] : acc[r]);
}

/// product_block for a number of rows known at run time, 1 <= rows <= R.
template <bool packed, int R = kProductRows>
void product_rows(int rows, const float* a, i64 a_row, const float* b, i64 depth, float* c, i64 c_row,
                  bool add) {
  if constexpr (R > 1) {
    if (rows < R) return product_rows<packed, R - 1>(rows, a, a_row, b, depth, c, c_row, add);
  }
  product_block<R, packed>(a, a_row, b, depth, c, c_row, add);
}

/// Rows of a, columns k0 .. k0 + depth, in the form that product_block reads: where they lie, or widened or
/// packed into scratch memory.
template <class T>
RAPO_INLINE void take_rows(const Factor<T>& f, i64 i, int rows, i64 k0, i64 depth, bool may_read_16,
                           float* scratch) {
  const T* from = f.data + i * f.row + k0 * f.column;
  if (f.column == 1) {
    for (int r = 0; r < rows; ++r) {
      for (i64 k = 0; k < depth; k += kLanes) {
        store(scratch + r * kProductDepth + k, load_up_to(from + r * f.row + k, depth - k));
      }
    }
  } else if (may_read_16) {
    for (i64 k = 0; k < depth; ++k) store(scratch + k * kProductRows, load(from + k * f.column));
  } else {
    for (i64 k = 0; k < depth; ++k) {
      for (int r = 0; r < rows; ++r) scratch[k * kProductRows + r] = one(from + k * f.column + r);
    }
  }
}

template <class T>
void product(const Factor<T>& f, i64 k, const float* panels, i64 i0, i64 i1, i64 p0, i64 p1, float* c) {
  const i64 c_row = (p1 - p0) * kLanes;
  float scratch[kProductRows * kProductDepth + kLanes];
  for (i64 k0 = 0; k0 < k; k0 += kProductDepth) {
    const i64 depth = k - k0 < kProductDepth ? k - k0 : kProductDepth;
    for (i64 i = i0; i < i1; i += kProductRows) {
      const int rows = i1 - i < kProductRows ? static_cast<int>(i1 - i) : kProductRows;
      const float* a = scratch;
      i64 a_row = kProductDepth;
      if constexpr (sizeof(T) == sizeof(float)) {
        if (f.column == 1) {  // read in place
          a = f.data + i * f.row + k0;
          a_row = f.row;
        }
      }
      if (a == scratch) take_rows(f, i, rows, k0, depth, i + kLanes <= i1, scratch);
      for (i64 p = p0; p < p1; ++p) {
        const float* b = panels + (p * k + k0) * kLanes;
        float* to = c + (i - i0) * c_row + (p - p0) * kLanes;
        if (f.column == 1) {
          product_rows<false>(rows, a, a_row, b, depth, to, c_row, k0 > 0);
        } else {
          product_rows<true>(rows, a, 0, b, depth, to, c_row, k0 > 0);
        }
      }
    }
  }
}

template <class T>
void pack_panels(const Factor<T>& f, i64 k, i64 n, float* panels, i64 begin, i64 end) {
  for (i64 p = begin; p < end; ++p) {
    const i64 j0 = p * kLanes, columns = n - j0 < kLanes ? n - j0 : kLanes;
    float* to = panels + j0 * k;
    if (f.column == 1) {
      for (i64 r = 0; r < k; ++r) store(to + r * kLanes, load_up_to(f.data + r * f.row + j0, columns));
      continue;
    }
    for (i64 j = 0; j < kLanes; ++j) {
      const T* column = f.data + (j0 + j) * f.column;
      for (i64 r = 0; r < k; ++r) to[r * kLanes + j] = j < columns ? one(column + r) : 0.0f;
    }
  }
}

template <class T>
void store_transposed(const float* c, i64 c_row, i64 m, i64 n, const T* start, i64 start_row, T* y,
                      i64 y_row) {
  for (i64 j = 0; j < n; ++j) {
    for (i64 i = 0; i < m; ++i) {
      put(y + j * y_row + i, c[i * c_row + j] + (start ? one(start + j * start_row + i) : 0.0f));
    }
  }
}

void add_tile(const float* c, i64 c_row, i64 m, i64 n, float* y, i64 y_row) {
  for (i64 i = 0; i < m; ++i) {
    for (i64 j = 0; j < n; ++j) y[i * y_row + j] += c[i * c_row + j];
  }
}

template <class T>
void fill(Ops<T>& ops) {
  ops.pack_panels = &pack_panels<T>;
  ops.product = &product<T>;
  ops.store_transposed = &store_transposed<T>;
}

}  // namespace

void fill_product(Table& table) {
  table.each([](auto& ops) { fill(ops); });
  table.has_product = kHasProduct;
  table.add_tile = &add_tile;
}

}  // namespace RAPO_ISA
}  // namespace rapo::loops
