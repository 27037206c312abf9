// For systems without dlopen.
#include "open.h"

namespace rapo::cuda {

Availability load(const std::string& /*packaged*/) {
  Availability found;
  found.lacks = "library";
  found.reason = "the CUDA kernels are for Linux only";
  return found;
}

}  // namespace rapo::cuda
