#include <dlfcn.h>

#include <cstdlib>

#include "open.h"

namespace rapo::cuda {
namespace {

std::string beside_this_addon() {
  Dl_info info;
  if (!dladdr(reinterpret_cast<const void*>(&availability), &info) || !info.dli_fname)
    return "librapo_cuda.so";
  const std::string addon = info.dli_fname;
  return addon.substr(0, addon.rfind('/') + 1) + "librapo_cuda.so";
}

}  // namespace

Availability load() {
  Availability found;
  const char* named = std::getenv("RAPO_CUDA_LIBRARY");
  found.library = named && *named ? named : beside_this_addon();
  void* library = dlopen(found.library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    const char* error = dlerror();
    found.reason = "the CUDA kernels could not be loaded: " + std::string(error ? error : found.library) +
                   " (npm run build:cuda makes them, where nvcc is)";
    return found;
  }
  const auto get = reinterpret_cast<RapoCudaFunctions>(dlsym(library, "rapo_cuda_functions"));
  const Functions* functions = get ? get(kAbiVersion) : nullptr;
  if (!functions) {
    found.reason = found.library + " belongs to another version of rapo: run npm run build:cuda again";
    return found;
  }
  int devices = 0;
  const int error = functions->device_count(&devices);
  if (error != 0 || devices == 0) {
    found.reason = std::string("there is no CUDA device: ") + functions->error_text(error);
    return found;
  }
  for (int device = 0; device < devices; ++device) {
    DeviceInfo info;
    if (const int failed = functions->device_info(device, &info)) {
      found.reason = "CUDA device " + std::to_string(device) + ": " + functions->error_text(failed);
      found.devices.clear();
      return found;
    }
    found.devices.push_back(info);
  }
  found.functions = functions;
  return found;
}

}  // namespace rapo::cuda
