// The one place that turns native exceptions into JS errors: instances of RapoError (lib/base/errors.ts) with
// a code.
#pragma once

#include <napi.h>

#include <exception>
#include <memory>
#include <new>
#include <string>
#include <utility>

#include "error.h"

namespace rapo::bindings {

class Calls;

/// Per-environment state (one per worker_thread).
struct AddonData {
  Napi::FunctionReference error_class;  // the RapoError constructor, set by lib/setup/addons.ts
  std::shared_ptr<Calls> calls;         // see async.h; null before the first asynchronous call
};

inline Napi::Value set_error_class(const Napi::CallbackInfo& info) {
  if (!info[0].IsFunction()) throw Napi::TypeError::New(info.Env(), "setErrorClass takes a constructor");
  auto* data = info.Env().GetInstanceData<AddonData>();
  data->error_class = Napi::Persistent(info[0].As<Napi::Function>());
  return info.Env().Undefined();
}

/// An exception's code and message, on their way from a worker thread to the JS thread.
struct Failure {
  const char* code = nullptr;
  std::string message;
};

inline Failure describe(std::exception_ptr error) {
  try {
    std::rethrow_exception(std::move(error));
  } catch (const Error& e) {
    return {code_name(e.code()), e.what()};
  } catch (const std::bad_alloc&) {
    return {code_name(ErrorCode::kOutOfMemory), "out of memory"};
  } catch (const std::exception& e) {
    return {"ERR_RAPO_INTERNAL", e.what()};
  } catch (...) {
    return {"ERR_RAPO_INTERNAL", "an exception of unknown type"};
  }
}

inline Napi::Value make_js_error(Napi::Env env, const Failure& failure) {
  auto* data = env.GetInstanceData<AddonData>();
  const auto code = Napi::String::New(env, failure.code);
  const auto message = Napi::String::New(env, failure.message);
  if (data && !data->error_class.IsEmpty()) return data->error_class.New({code, message});
  auto error = Napi::Error::New(env, failure.message).Value();
  error.Set("code", code);
  return error;
}

/// Runs a synchronous binding and turns its exceptions into JS exceptions.
template <class F>
Napi::Value guarded(const Napi::CallbackInfo& info, F&& body) {
  try {
    return body();
  } catch (const Napi::Error&) {
    throw;
  } catch (...) {
    auto error = make_js_error(info.Env(), describe(std::current_exception()));
    napi_throw(info.Env(), error);
    return {};
  }
}

}  // namespace rapo::bindings
