// The one thread on which the engine works, and the calls that run there.
#pragma once

#include <napi.h>

#include <atomic>
#include <functional>
#include <memory>
#include <utility>

#include "async.h"
#include "engine/policy.h"
#include "executor.h"

namespace rapo::bindings {

/// The number that setThreads asked for; -1 once it is in force. OpenMP keeps a number for each thread, so
/// that only the engine's thread can set its own.
inline std::atomic<int>& wanted_threads() {
  static std::atomic<int> threads{-1};
  return threads;
}

/// The one thread for all libtorch work of the process, so that there is one OpenMP team for calls of all
/// environments. Never destroyed: the thread lives as long as the process.
inline Executor& engine_thread() {
  static auto* executor = new Executor(1);
  return *executor;
}

/// Runs work(control) on the engine's thread, after the earlier calls.
template <class Result>
Napi::Value on_engine(Napi::Env env, const std::shared_ptr<Control>& control,
                      std::function<Result(Control&)> work,
                      std::function<Napi::Value(Napi::Env, Result&)> to_js) {
  auto run = [control, work = std::move(work)] {
    const int threads = wanted_threads().exchange(-1);
    if (threads >= 0) set_engine_threads(threads);
    return work(*control);
  };
  return PromiseWorker<Result>::run(env, control, {}, std::move(run), std::move(to_js), &engine_thread());
}

/// The same for work without a result. Without a control only the environment's end cancels it.
inline Napi::Value on_engine(Napi::Env env, std::function<void(Control&)> work,
                             const std::shared_ptr<Control>& control = std::make_shared<Control>()) {
  return on_engine<bool>(
      env, control,
      [work = std::move(work)](Control& control) {
        work(control);
        return true;
      },
      [](Napi::Env e, bool&) { return e.Undefined(); });
}

}  // namespace rapo::bindings
