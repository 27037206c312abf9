#include "vec.h"

namespace rapo::loops {
namespace RAPO_ISA {

// Built at the first call, not at load time: building it runs code of this instruction set.
const Table& table() {
  static const Table filled = [] {
    Table t{};
    t.name = simd::kName;
    fill_adamw(t);
    fill_attention(t);
    fill_embedding(t);
    fill_gate(t);
    fill_gemm(t);
    fill_norm(t);
    fill_product(t);
    fill_rounding(t);
    fill_sample(t);
    return t;
  }();
  return filled;
}

}  // namespace RAPO_ISA
}  // namespace rapo::loops
