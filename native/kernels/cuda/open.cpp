#include "open.h"

#include "error.h"

namespace rapo::cuda {
namespace {

constexpr int kErrorMemoryAllocation = 2;  // cudaErrorMemoryAllocation

}  // namespace

const Availability& availability() {
  static const Availability found = load();
  return found;
}

const Functions& functions_for(int device) {
  const auto& found = availability();
  if (!found.functions) throw Error(ErrorCode::kDevice, found.reason);
  const auto devices = static_cast<int>(found.devices.size());
  if (device < 0 || device >= devices) {
    throw Error(ErrorCode::kInvalidArgument, "device is " + std::to_string(device) + ", outside [0, " +
                                                 std::to_string(devices) +
                                                 "), the CUDA devices of this machine");
  }
  return *found.functions;
}

void check(const Functions& functions, int error, const char* doing) {
  if (error == 0) return;
  const auto code = error == kErrorMemoryAllocation ? ErrorCode::kOutOfMemory : ErrorCode::kDevice;
  throw Error(code, std::string(doing) + ": " + functions.error_text(error));
}

}  // namespace rapo::cuda
