// Root mean square normalisation and its gradient.
#include "vec.h"

namespace rapo::loops {
namespace RAPO_ISA {
namespace {

template <class T>
void rms_norm(const T* x, const T* w, float eps, i64 channels, T* y, float* rstd, i64 begin, i64 end) {
  const float inverse = 1.0f / static_cast<float>(channels);
  for (i64 row = begin; row < end; ++row) {
    const T* in = x + row * channels;
    T* out = y + row * channels;
    Vec sum{};
    for (i64 c = 0; c < channels; c += kLanes) {
      const Vec v = load_up_to(in + c, channels - c);
      sum += v * v;
    }
    const float r = 1.0f / __builtin_sqrtf(sum_lanes(sum) * inverse + eps);
    if (rstd) rstd[row] = r;
    for (i64 c = 0; c < channels; c += kLanes) {
      const i64 n = channels - c;
      store_up_to(out + c, load_up_to(in + c, n) * r * load_up_to(w + c, n), n);
    }
  }
}

template <class T>
void rms_norm_backward(const T* x, const T* w, const float* rstd, const T* dy, i64 channels, T* dx, float* dw,
                       i64 begin, i64 end) {
  const float inverse = 1.0f / static_cast<float>(channels);
  for (i64 row = begin; row < end; ++row) {
    const T* in = x + row * channels;
    const T* grad = dy + row * channels;
    T* out = dx + row * channels;
    const float r = rstd[row];
    Vec dot{};
    for (i64 c = 0; c < channels; c += kLanes) {
      const i64 n = channels - c;
      dot += load_up_to(in + c, n) * load_up_to(grad + c, n) * load_up_to(w + c, n);
    }
    const float pull = sum_lanes(dot) * inverse * r * r * r;
    for (i64 c = 0; c < channels; c += kLanes) {
      const i64 n = channels - c;
      const Vec v = load_up_to(in + c, n), g = load_up_to(grad + c, n);
      if constexpr (sizeof(T) == 4) {
        store_up_to(out + c, load_up_to(out + c, n) + g * load_up_to(w + c, n) * r - v * pull, n);
      } else {
        // Written with fused(), since the compiler's own choice to fuse would depend on how a bfloat16 is
        // stored.
        const Vec sum = fused(g * load_up_to(w + c, n), splat(r), load_up_to(out + c, n));
        store_up_to(out + c, fused_negative(v, splat(pull), sum), n);
      }
      store_up_to(dw + c, load_up_to(dw + c, n) + g * v * r, n);
    }
  }
}

template <class T>
void fill(Ops<T>& ops) {
  ops.rms_norm = &rms_norm<T>;
  ops.rms_norm_backward = &rms_norm_backward<T>;
}

}  // namespace

void fill_norm(Table& table) {
  table.each([](auto& ops) { fill(ops); });
}

}  // namespace RAPO_ISA
}  // namespace rapo::loops
