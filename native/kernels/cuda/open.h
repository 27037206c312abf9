// Finds the CUDA library at run time. Host code without CUDA's headers: it is part of every build of the
// addon.
#pragma once

#include <string>
#include <vector>

#include "library.h"

namespace rapo::cuda {

/// A file that was tried.
struct Place {
  std::string library;
  std::string problem;  // why it will not do; empty: it is the one in use
};

struct Availability {
  const Functions* functions = nullptr;  // null: CUDA is off
  std::string lacks;                     // what is missing then: library, driver or device
  std::string reason;                    // the same as a sentence, with what mends it
  std::vector<Place> searched;           // in the order in which they were tried
  std::vector<DeviceInfo> devices;
};

/// Looks for the library, in `packaged` last (empty: nowhere), and its devices (load.cpp; load_none.cpp where
/// libraries are not loaded that way).
Availability load(const std::string& packaged);

/// The library that comes as a package of its own. Has a say until the first look.
void set_packaged_library(const std::string& file);

/// The answer of the first look: for the file that RAPO_CUDA_LIBRARY names, else for librapo_cuda.so beside
/// this addon, then for the packaged library.
const Availability& availability();

/// Throws kDevice with the reason where CUDA is off, kInvalidArgument where there is no such device.
const Functions& functions_for(int device);

/// Throws kDevice (kOutOfMemory where that is what it says) for anything but 0.
void check(const Functions& functions, int error, const char* doing);

}  // namespace rapo::cuda
