#include "vec.h"

namespace rapo::loops {
namespace RAPO_ISA {
namespace {

template <class T>
void scatter_add(const std::int32_t* ids, i64 rows, const T* x, i64 channels, float* out, i64 c0, i64 c1) {
  for (i64 i = 0; i < rows; ++i) {
    const T* from = x + i * channels;
    float* to = out + ids[i] * channels;
    for (i64 c = c0; c < c1; c += kLanes) {
      const i64 n = c1 - c;
      store_up_to(to + c, load_up_to(to + c, n) + load_up_to(from + c, n), n);
    }
  }
}

template <class T>
void fill(Ops<T>& ops) {
  ops.scatter_add = &scatter_add<T>;
}

}  // namespace

void fill_embedding(Table& table) {
  table.each([](auto& ops) { fill(ops); });
}

}  // namespace RAPO_ISA
}  // namespace rapo::loops
