// Which instruction set's code runs: the first of an ordered table that the processor can run, or the one
// that an environment variable names.
#pragma once

#include <cstdlib>
#include <string>
#include <vector>

#include "error.h"
#include "features.h"

namespace rapo::simd {

/// Code: what is compiled once per instruction set.
template <class Code>
struct Entry {
  const char* name;
  bool Features::* needs;  // null: nothing that a processor could lack
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

/// The entry of that name, for "" the first one, of those that are available; where there is none, throws an
/// error with that code which names the variable.
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
