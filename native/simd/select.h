// The choice of an instruction set: the first entry of an ordered table that the processor can run, or the
// entry that an environment variable names.
#pragma once

#include <cstdlib>
#include <string>
#include <vector>

#include "error.h"
#include "features.h"

namespace rapo::simd {

/// Code: the type of what is compiled once per instruction set.
template <class Code>
struct Entry {
  const char* name;
  bool Features::* needs;  // null if every processor has it
  Code code;

  bool available() const { return !needs || processor().*needs; }
};

template <class Code, std::size_t kCount>
std::vector<std::string> available_names(const Entry<Code> (&entries)[kCount]) {
  std::vector<std::string> names;
  for (const auto& entry : entries) {
    if (entry.available()) names.emplace_back(entry.name);
  }
  return names;
}

inline std::string from_environment(const char* variable) {
  const char* value = std::getenv(variable);
  return value ? value : "";
}

/// The available entry of that name; for "" the first available one. If there is none, throws an error with
/// the given code that names the variable.
template <class Code, std::size_t kCount>
const Code& select(const Entry<Code> (&entries)[kCount], const std::string& name, const char* variable,
                   ErrorCode error) {
  std::string known;
  for (const auto& entry : entries) {
    if (!entry.available()) continue;
    if (name.empty() || name == entry.name) return entry.code;
    known += (known.empty() ? "" : ", ") + std::string(entry.name);
  }
  throw Error(error,
              std::string(variable) + " is \"" + name + "\", expected one that this machine has: " + known);
}

}  // namespace rapo::simd
