// Numbers of 16 bits as they lie in memory.
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
