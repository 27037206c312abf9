// The gated unit, SwiGLU, and its gradient.
#include "vec.h"

namespace rapo::loops {
namespace RAPO_ISA {
namespace {

template <class T>
void swiglu(const T* gate_up, i64 width, T* out, i64 begin, i64 end) {
  for (i64 row = begin; row < end; ++row) {
    const T* gate = gate_up + row * 2 * width;
    const T* up = gate + width;
    T* o = out + row * width;
    for (i64 c = 0; c < width; c += kLanes) {
      const i64 n = width - c;
      const Vec g = load_up_to(gate + c, n);
      store_up_to(o + c, g / (exp_of(-g) + 1.0f) * load_up_to(up + c, n), n);
    }
  }
}

template <class T>
void swiglu_backward(const T* gate_up, const T* dout, i64 width, T* dgate_up, i64 begin, i64 end) {
  for (i64 row = begin; row < end; ++row) {
    const T* gate = gate_up + row * 2 * width;
    const T* up = gate + width;
    const T* d = dout + row * width;
    T* dgate = dgate_up + row * 2 * width;
    T* dup = dgate + width;
    for (i64 c = 0; c < width; c += kLanes) {
      const i64 n = width - c;
      const Vec g = load_up_to(gate + c, n), u = load_up_to(up + c, n), go = load_up_to(d + c, n);
      const Vec sigmoid = 1.0f / (exp_of(-g) + 1.0f);
      const Vec silu = g * sigmoid;
      store_up_to(dup + c, go * silu, n);
      store_up_to(dgate + c, go * u * fused(silu, 1.0f - sigmoid, sigmoid), n);
    }
  }
}

template <class T>
void fill(Ops<T>& ops) {
  ops.swiglu = &swiglu<T>;
  ops.swiglu_backward = &swiglu_backward<T>;
}

}  // namespace

void fill_gate(Table& table) {
  table.each([](auto& ops) { fill(ops); });
}

}  // namespace RAPO_ISA
}  // namespace rapo::loops
