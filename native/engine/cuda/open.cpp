#include "kernels/cuda/open.h"

#include <string>

#include "cuda/device.h"
#include "error.h"

namespace rapo::device {

at::Device open(const std::string& name) {
  if (name == "cpu") return at::Device(at::kCPU);
  const bool numbered =
      name.size() > 5 && name.size() < 9 && name.find_first_not_of("0123456789", 5) == std::string::npos;
  if (name != "cuda" && !(name.compare(0, 5, "cuda:") == 0 && numbered)) {
    throw Error(ErrorCode::kInvalidArgument, "device is \"" + name + "\", expected cpu, cuda or cuda:N");
  }
  const int index = numbered ? std::stoi(name.substr(5)) : 0;
  const std::string what = "device is \"" + name + "\", but ";
  if (!has_cuda()) {
    throw Error(ErrorCode::kDevice,
                what +
                    "the engine was compiled against a libtorch without CUDA: let RAPO_LIBTORCH name one "
                    "with CUDA and run `rapo setup`");
  }
  std::string reason;
  const int count = count_devices(reason);
  if (index >= count) {
    throw Error(
        ErrorCode::kDevice,
        what + (count == 0 ? "libtorch finds no CUDA device (" + reason + "): nvidia-smi should list one"
                           : "libtorch finds " + std::to_string(count) + " CUDA devices"));
  }
  try {
    cuda::functions_for(index);
  } catch (const Error& error) {
    throw Error(ErrorCode::kDevice, what + error.what());
  }
  enter(index);
  return at::Device(at::kCUDA, static_cast<at::DeviceIndex>(index));
}

}  // namespace rapo::device
