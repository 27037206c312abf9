// Finds the CUDA library at run time. Host code without CUDA's headers: it is part of every build of the
// addon.
#pragma once

#include <string>
#include <vector>

#include "library.h"

namespace rapo::cuda {

struct Availability {
  const Functions* functions = nullptr;  // null: CUDA is off
  std::string reason;                    // why it is
  std::string library;                   // the file that was looked for
  std::vector<DeviceInfo> devices;
};

/// Looks once: for the file that RAPO_CUDA_LIBRARY names, else for librapo_cuda.so beside this addon.
const Availability& availability();

/// Throws kDevice with the reason where CUDA is off, kInvalidArgument where there is no such device.
const Functions& functions_for(int device);

/// Throws kDevice (kOutOfMemory where that is what it says) for anything but 0.
void check(const Functions& functions, int error, const char* doing);

}  // namespace rapo::cuda
