// Where there is no dlopen.
#include "open.h"

namespace rapo::cuda {

Availability load() {
  Availability found;
  found.reason = "the CUDA kernels are for Linux only";
  return found;
}

}  // namespace rapo::cuda
