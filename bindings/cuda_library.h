// A function of both addons that sets the file of the CUDA kernels' library.
#pragma once

#include <napi.h>

#include "errors.h"
#include "kernels/cuda/open.h"

namespace rapo::bindings {

/// setCudaLibrary(file): the file of the CUDA kernels' library, if it is not beside the addon.
inline Napi::Value set_cuda_library(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    if (!info[0].IsString()) invalid("file must be a string");
    cuda::set_packaged_library(info[0].As<Napi::String>());
    return info.Env().Undefined();
  });
}

}  // namespace rapo::bindings
