// The process's environment variables, which a worker thread's process.env is a copy of.
#pragma once

#include <napi.h>

#include <cstdlib>
#include <string>

#include "errors.h"

namespace rapo::bindings {

/// setEnvironment(name, value): for this process, where it has no such variable. Libraries read their
/// variables when they are loaded.
inline Napi::Value set_environment(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    const std::string name = info[0].ToString(), value = info[1].ToString();
#ifdef _WIN32
    if (!std::getenv(name.c_str())) _putenv_s(name.c_str(), value.c_str());
#else
    ::setenv(name.c_str(), value.c_str(), 0);
#endif
    return info.Env().Undefined();
  });
}

}  // namespace rapo::bindings
