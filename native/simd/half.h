// 16-bit numbers as they are stored in memory.
#pragma once

#include <cstdint>

namespace rapo {

struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

}  // namespace rapo
