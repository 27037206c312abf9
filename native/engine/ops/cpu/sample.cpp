#include "vec.h"

namespace rapo::loops {
namespace RAPO_ISA {
namespace {

template <class T>
float exp_row(const T* logits, i64 size, float scale, float* p, double* block_sums) {
  Vec top = splat(-__builtin_inff());
  i64 v = 0;
  for (; v + kLanes <= size; v += kLanes) {
    const Vec z = load(logits + v) * scale;
    store(p + v, z);
    top = max_of(z, top);
  }
  float m = max_lanes(top);
  for (; v < size; ++v) {
    p[v] = one(logits + v) * scale;
    m = p[v] > m ? p[v] : m;
  }
  for (i64 b = 0; b < size; b += kSumBlock) {
    const i64 stop = b + kSumBlock < size ? b + kSumBlock : size;
    Vec part{};
    for (v = b; v < stop; v += kLanes) {
      const i64 n = stop - v;
      const Vec z = load_up_to(p + v, n) - m;
      Vec e = choose(z < -87.0f, Vec{}, exp_of(z));  // 0 for -inf and below float32's normal range
      if (n < kLanes) e = first_lanes(e, n, 0);
      store_up_to(p + v, e, n);
      part += e;
    }
    block_sums[b / kSumBlock] = static_cast<double>(sum_lanes(part));
  }
  return m;
}

template <class T>
void fill(Ops<T>& ops) {
  ops.exp_row = &exp_row<T>;
}

}  // namespace

void fill_sample(Table& table) {
  table.each([](auto& ops) { fill(ops); });
}

}  // namespace RAPO_ISA
}  // namespace rapo::loops
