// Finds the CUDA library at run time. This is host code without CUDA's headers and part of every build of the
// addon.
#pragma once

#include <string>
#include <vector>

#include "library.h"

namespace rapo::cuda {

/// A file that was tried.
struct Place {
  std::string library;
  std::string problem;  // why the file cannot be used; empty for the library in use
};

struct Availability {
  const Functions* functions = nullptr;  // null if CUDA is off
  std::string lacks;                     // what is missing if CUDA is off: library, driver or device
  std::string reason;                    // the same as a sentence that says what to do
  std::vector<Place> searched;           // in the order of the attempts
  std::vector<DeviceInfo> devices;
};

/// Looks for the library and for devices. `packaged`, unless empty, is tried last. (load.cpp; load_none.cpp
/// on systems without dlopen)
Availability load(const std::string& packaged);

/// Sets the file of the library that comes as a package of its own. Has no effect after the first look.
void set_packaged_library(const std::string& file);

/// The result of the first look. Tries the file that RAPO_CUDA_LIBRARY names; if the variable is not set,
/// librapo_cuda.so beside this addon, then the packaged library.
const Availability& availability();

/// Throws kDevice with the reason if CUDA is off, and kInvalidArgument if there is no such device.
const Functions& functions_for(int device);

/// Throws for any status but 0: kOutOfMemory if that is the status, kDevice otherwise.
void check(const Functions& functions, int error, const char* doing);

}  // namespace rapo::cuda
