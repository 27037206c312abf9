// Helpers for reading and writing files.
#pragma once

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "error.h"

namespace rapo {

/// Throws Error(kFormat).
[[noreturn]] inline void fail_format(const std::string& message) { throw Error(ErrorCode::kFormat, message); }

/// Throws Error(kIo) with the reason that errno gives.
[[noreturn]] inline void fail_io(const std::string& what, const std::string& path) {
  throw Error(ErrorCode::kIo, what + " " + path + ": " + std::strerror(errno));
}

/// A file descriptor that closes itself.
struct Descriptor {
  int fd = -1;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

}  // namespace rapo
