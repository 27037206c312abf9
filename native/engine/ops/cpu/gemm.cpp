#include "vec.h"

namespace rapo::loops {
namespace RAPO_ISA {
namespace {

// Registers hold a block of c: 6 x 64 with AVX-512, which has 32 registers of 16 floats; 4 x 16 otherwise.
#if defined(__AVX512F__)
constexpr int kBlockRows = 6, kBlockVecs = 4;
#else
constexpr int kBlockRows = 4, kBlockVecs = 1;
#endif
constexpr i64 kPanel = 64;

/// Rows i .. i + R, columns j .. j + 16 V of c. If the last vector is not full, it has `tail` columns.
template <int R, int V>
RAPO_INLINE void gemm_block(const Gemm& g, i64 i, i64 j, i64 tail) {
  const bool short_load = tail < kLanes && !g.b_padded;
  const float* b = g.b + j / kPanel * g.b_panel + j % kPanel;
  const float* a[R];
  Vec acc[R][V];
  for (int r = 0; r < R; ++r) {
    a[r] = g.a + (i + r) * g.a_row;
    const float* start = g.start ? g.start + (i + r) * g.start_row + j : nullptr;
    for (int v = 0; v < V; ++v) {
      acc[r][v] = !start ? Vec{} : load_up_to(start + v * kLanes, v + 1 < V ? kLanes : tail);
    }
  }
  if (short_load) {
    for (i64 k = 0; k < g.k; ++k) {
      for (int v = 0; v < V; ++v) {
        const Vec x = load_up_to(b + k * g.b_row + v * kLanes, v + 1 < V ? kLanes : tail);
        for (int r = 0; r < R; ++r) acc[r][v] += x * a[r][k * g.a_column];
      }
    }
  } else {
    for (i64 k = 0; k < g.k; ++k) {
      Vec x[V];
      for (int v = 0; v < V; ++v) x[v] = load(b + k * g.b_row + v * kLanes);
      for (int r = 0; r < R; ++r) {
        const float y = a[r][k * g.a_column];
        for (int v = 0; v < V; ++v) acc[r][v] += x[v] * y;
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    float* c = g.c + (i + r) * g.c_row + j;
    for (int v = 0; v < V; ++v) store_up_to(c + v * kLanes, acc[r][v], v + 1 < V ? kLanes : tail);
  }
}

template <int V>
void gemm_columns(const Gemm& g, i64 begin, i64 end, i64 j, i64 tail) {
  i64 i = begin;
  for (; i + kBlockRows <= end; i += kBlockRows) gemm_block<kBlockRows, V>(g, i, j, tail);
  for (; i + 2 <= end; i += 2) gemm_block<2, V>(g, i, j, tail);
  for (; i < end; ++i) gemm_block<1, V>(g, i, j, tail);
}

void gemm(const Gemm& g, i64 begin, i64 end) {
  for (i64 j = 0; j < g.n;) {
    const i64 left = g.n - j;
    const i64 vecs = (left < kBlockVecs * kLanes ? left + kLanes - 1 : kBlockVecs * kLanes) / kLanes;
    const i64 tail = left < vecs * kLanes ? left - (vecs - 1) * kLanes : kLanes;
    switch (vecs) {
#if defined(__AVX512F__)
      case 4:
        gemm_columns<4>(g, begin, end, j, tail);
        break;
      case 3:
        gemm_columns<3>(g, begin, end, j, tail);
        break;
      case 2:
        gemm_columns<2>(g, begin, end, j, tail);
        break;
#endif
      default:
        gemm_columns<1>(g, begin, end, j, tail);
    }
    j += vecs * kLanes;
  }
}

void gemm_pack(const float* w, i64 n, i64 k, float* packed) {
  for (i64 j0 = 0; j0 < n; j0 += kPanel) {
    float* panel = packed + j0 * k;
    for (i64 j = 0; j < kPanel; ++j) {
      const float* from = w + (j0 + j) * k;
      if (j0 + j < n) {
        for (i64 r = 0; r < k; ++r) panel[r * kPanel + j] = from[r];
      } else {
        for (i64 r = 0; r < k; ++r) panel[r * kPanel + j] = 0;
      }
    }
  }
}

}  // namespace

void fill_gemm(Table& table) {
  table.gemm = &gemm;
  table.gemm_pack = &gemm_pack;
}

}  // namespace RAPO_ISA
}  // namespace rapo::loops
