// Access to the process's environment variables. In a worker thread, process.env is only a copy of them.
#pragma once

#include <napi.h>

#include <cstdlib>
#include <string>

#include "errors.h"

namespace rapo::bindings {

/// setEnvironment(name, value): sets a variable of the process unless it is set already. Libraries read their
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
