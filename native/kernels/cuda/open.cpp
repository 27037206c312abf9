#include "open.h"

#include <mutex>

#include "error.h"

namespace rapo::cuda {
namespace {

constexpr int kErrorMemoryAllocation = 2;  // cudaErrorMemoryAllocation
constexpr int kOldestMajor = 8;            // the oldest compute capability that CMakeLists.txt compiles for

std::mutex packaged_mutex;  // worker threads load the addon, too

std::string& packaged_library() {
  static std::string file;
  return file;
}

}  // namespace

void set_packaged_library(const std::string& file) {
  const std::lock_guard<std::mutex> lock(packaged_mutex);
  packaged_library() = file;
}

const Availability& availability() {
  static const Availability found = [] {
    const std::lock_guard<std::mutex> lock(packaged_mutex);
    return load(packaged_library());
  }();
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
  const DeviceInfo& info = found.devices[static_cast<std::size_t>(device)];
  if (info.major < kOldestMajor) {
    throw Error(ErrorCode::kDevice, "device " + std::to_string(device) + " (" + info.name +
                                        ") has compute capability " + std::to_string(info.major) + "." +
                                        std::to_string(info.minor) + "; the kernels need " +
                                        std::to_string(kOldestMajor) + ".0 or newer");
  }
  return *found.functions;
}

void check(const Functions& functions, int error, const char* doing) {
  if (error == 0) return;
  const auto code = error == kErrorMemoryAllocation ? ErrorCode::kOutOfMemory : ErrorCode::kDevice;
  throw Error(code, std::string(doing) + ": " + functions.error_text(error));
}

}  // namespace rapo::cuda
