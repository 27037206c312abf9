// What the fuzz targets share. A target takes any bytes; it may throw rapo::Error and nothing else, and what it
// accepts must hold what require() says. libFuzzer drives it (npm run fuzz), replay.cpp runs the committed corpus.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "error.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

inline void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "does not hold: %s\n", what);
  std::abort();
}

/// A directory of this process, removed at its end, in which a target keeps the file under test.
class Scratch {
 public:
  Scratch() {
    const char* base = std::getenv("TMPDIR");
    path_ = std::string(base ? base : P_tmpdir) + "/rapo-fuzz-XXXXXX";
    require(::mkdtemp(path_.data()) != nullptr, "a scratch directory can be made");
  }
  ~Scratch() {
    const std::string command = "rm -rf '" + path_ + "'";
    if (std::system(command.c_str()) != 0) std::fprintf(stderr, "%s was not removed\n", path_.c_str());
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  const std::string& path() const { return path_; }

  std::string write(const std::string& name, const void* data, std::size_t size) const {
    const std::string file = path_ + "/" + name;
    const int fd = ::open(file.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    require(fd >= 0 && ::write(fd, data, size) == static_cast<ssize_t>(size), "the scratch file is written");
    ::close(fd);
    return file;
  }

 private:
  std::string path_;
};
