// AdamW on flat float32 arrays, and the other loops of an optimizer step.
#include "vec.h"

namespace rapo::loops {
namespace RAPO_ISA {
namespace {

void adamw(float* master, const float* grad, float* m, float* v, i64 n, const AdamWStep& s) {
  const float shrink = 1.0f - s.learning_rate * s.weight_decay;
  const float rate = s.learning_rate / s.bias1;
  const float root = 1.0f / __builtin_sqrtf(s.bias2);
  for (i64 i = 0; i < n; ++i) {
    const float g = grad[i] * s.grad_scale;
    m[i] = s.beta1 * m[i] + s.rest1 * g;
    v[i] = s.beta2 * v[i] + s.rest2 * g * g;
    master[i] = master[i] * shrink - rate * m[i] / (__builtin_sqrtf(v[i]) * root + s.eps);
  }
}

double sum_squares(const float* x, i64 n) {
  double sums[kLanes] = {};
  i64 i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (i64 l = 0; l < kLanes; ++l) sums[l] += static_cast<double>(x[i + l]) * static_cast<double>(x[i + l]);
  }
  double total = 0;
  for (; i < n; ++i) total += static_cast<double>(x[i]) * static_cast<double>(x[i]);
  for (const double s : sums) total += s;
  return total;
}

template <class T>
void round(const float* x, T* y, i64 n) {
  for (i64 i = 0; i < n; i += kLanes) store_up_to(y + i, load_up_to(x + i, n - i), n - i);
}

template <class T>
void widen(const T* x, float* y, i64 n) {
  for (i64 i = 0; i < n; i += kLanes) store_up_to(y + i, load_up_to(x + i, n - i), n - i);
}

template <class T>
void fill(Ops<T>& ops) {
  ops.round = &round<T>;
  ops.widen = &widen<T>;
}

}  // namespace

void fill_adamw(Table& table) {
  table.adamw = &adamw;
  table.sum_squares = &sum_squares;
  table.each([](auto& ops) { fill(ops); });
}

}  // namespace RAPO_ISA
}  // namespace rapo::loops
