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

/// Looks for the library and its devices (load.cpp; load_none.cpp where libraries are not loaded that way).
Availability load();

/// The answer of the first look: for the file that RAPO_CUDA_LIBRARY names, else for librapo_cuda.so beside
/// this addon.
const Availability& availability();

/// Throws kDevice with the reason where CUDA is off, kInvalidArgument where there is no such device.
const Functions& functions_for(int device);

/// Throws kDevice (kOutOfMemory where that is what it says) for anything but 0.
void check(const Functions& functions, int error, const char* doing);

}  // namespace rapo::cuda
