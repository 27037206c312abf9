// A library as rapo looks for it, without CUDA. FAKE_CUDA is "devices error [major]", what the runtime says there is.
#include <cstdio>
#include <cstdlib>

#include "kernels/cuda/library.h"

#ifndef ABI
#define ABI rapo::cuda::kAbiVersion
#endif

namespace {

int device_count(int* count) {
  int error = 0;
  const char* text = std::getenv("FAKE_CUDA");
  if (text) std::sscanf(text, "%d %d", count, &error);
  return error;
}

int major_of_device() {
  int count = 0, error = 0, major = 9;
  const char* text = std::getenv("FAKE_CUDA");
  if (text) std::sscanf(text, "%d %d %d", &count, &error, &major);
  return major;
}

int device_info(int /*device*/, rapo::cuda::DeviceInfo* info) {
  std::snprintf(info->name, sizeof info->name, "fake");
  info->major = major_of_device();
  return 0;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const rapo::cuda::Functions* rapo_cuda_functions(int abi) {
  static rapo::cuda::Functions functions;
  functions.error_text = [](int) { return "what the runtime says"; };
  functions.device_count = device_count;
  functions.device_info = device_info;
  return abi == ABI ? &functions : nullptr;
}
