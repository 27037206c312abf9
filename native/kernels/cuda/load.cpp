#include <dlfcn.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "open.h"

namespace rapo::cuda {
namespace {

/// Why an ELF file is truncated; an empty text if it is whole. The dynamic linker crashes on a truncated
/// file. The section headers are the last part of a library; the file's header has their place and size.
std::string find_fault(const std::string& file) {
  constexpr unsigned char kElf[] = {0x7f, 'E', 'L', 'F'};
  std::FILE* stream = std::fopen(file.c_str(), "rb");
  if (!stream) return "";
  unsigned char header[64];
  const bool is_elf = std::fread(header, sizeof header, 1, stream) == 1 &&
                      std::memcmp(header, kElf, sizeof kElf) == 0 && std::fseek(stream, 0, SEEK_END) == 0;
  const long end = is_elf ? std::ftell(stream) : -1;
  std::fclose(stream);
  if (end < 0) return "";
  const auto bytes = static_cast<std::uint64_t>(end);
  std::uint64_t sections = 0;
  std::uint16_t size = 0, count = 0;
  std::memcpy(&sections, header + 40, sizeof sections);
  std::memcpy(&size, header + 58, sizeof size);
  std::memcpy(&count, header + 60, sizeof count);
  const std::uint64_t whole = sections + std::uint64_t{size} * count;
  if (bytes >= whole) return "";
  return "damaged: it has " + std::to_string(bytes) + " bytes of " + std::to_string(whole);
}

std::string beside_this_addon() {
  Dl_info info;
  if (!dladdr(reinterpret_cast<const void*>(&availability), &info) || !info.dli_fname)
    return "librapo_cuda.so";
  const std::string addon = info.dli_fname;
  return addon.substr(0, addon.rfind('/') + 1) + "librapo_cuda.so";
}

/// The library's functions; null, with the reason, if it cannot be used.
const Functions* open_library(const std::string& file, std::string& problem) {
  // For a file that does not exist, the linker's message is longer than useful.
  if (file.find('/') != std::string::npos && access(file.c_str(), F_OK) != 0) {
    problem = "not there";
    return nullptr;
  }
  problem = find_fault(file);
  if (!problem.empty()) return nullptr;
  void* library = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    const char* error = dlerror();
    problem = error ? error : "did not load";
    return nullptr;
  }
  const auto get = reinterpret_cast<RapoCudaFunctions>(dlsym(library, "rapo_cuda_functions"));
  const Functions* functions = get ? get(kAbiVersion) : nullptr;
  if (!functions) problem = "belongs to another version of rapo";
  return functions;
}

std::string describe(const std::vector<Place>& searched) {
  std::string text;
  for (const auto& [library, problem] : searched) {
    text += (text.empty() ? "" : "; ") + library + ": " + problem;
  }
  return text;
}

/// The reason for having no devices. The runtime returns the same error for a missing driver and for a driver
/// that is too old.
void explain_no_devices(const std::string& error, int code, Availability& found) {
  constexpr int kStubLibrary = 34, kInsufficientDriver = 35, kSystemDriverMismatch = 803;
  if (code != kStubLibrary && code != kInsufficientDriver && code != kSystemDriverMismatch) {
    found.lacks = "device";
    found.reason = "there is no CUDA device: " + error;
    return;
  }
  found.lacks = "driver";
  found.reason = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL)
                     ? "the NVIDIA driver does not serve this library: " + error
                     : "there is no NVIDIA driver (libcuda.so.1): " + error;
}

}  // namespace

Availability load(const std::string& packaged) {
  Availability found;
  std::vector<std::string> files;
  const char* named = std::getenv("RAPO_CUDA_LIBRARY");
  if (named && *named) {
    files = {named};
  } else {
    files = {beside_this_addon()};
    if (!packaged.empty()) files.push_back(packaged);
  }
  const Functions* functions = nullptr;
  for (const auto& file : files) {
    std::string problem;
    functions = open_library(file, problem);
    found.searched.push_back({file, problem});
    if (functions) break;
  }
  if (!functions) {
    found.lacks = "library";
    found.reason =
        "there is no library of the CUDA kernels (" + describe(found.searched) +
        "): the package rapo-cuda-linux-x64 brings it, or npm run build:cuda in a clone, where nvcc is";
    return found;
  }
  int devices = 0;
  const int error = functions->device_count(&devices);
  if (error != 0 || devices == 0) {
    explain_no_devices(functions->error_text(error), error, found);
    return found;
  }
  for (int device = 0; device < devices; ++device) {
    DeviceInfo info;
    if (const int failed = functions->device_info(device, &info)) {
      found.lacks = "device";
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
