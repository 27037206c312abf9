// Asynchronous calls: their promises, their threads, and their end when the environment ends. Also the JS
// object for Control (cancel and progress).
#pragma once

#include <napi.h>

#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <unordered_set>
#include <utility>
#include <vector>

#include "control.h"
#include "errors.h"
#include "executor.h"

namespace rapo::bindings {

/// new Control(): cancel() stops the call that got this object; done and total are the call's progress.
class ControlObject : public Napi::ObjectWrap<ControlObject> {
 public:
  static Napi::Function define(Napi::Env env) {
    return DefineClass(
        env, "Control",
        {InstanceMethod<&ControlObject::cancel>("cancel"), InstanceAccessor<&ControlObject::done>("done"),
         InstanceAccessor<&ControlObject::total>("total")});
  }

  explicit ControlObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<ControlObject>(info) {
    info.This().As<Napi::Object>().TypeTag(&kTag);
  }

  /// The Control of a JS value; a new one if the caller passed none.
  static std::shared_ptr<Control> get(const Napi::Value& value) {
    if (value.IsUndefined() || value.IsNull()) return std::make_shared<Control>();
    // Without this check, an object of another class would be read as if it were a ControlObject.
    if (!value.IsObject() || !value.As<Napi::Object>().CheckTypeTag(&kTag)) {
      throw Error(ErrorCode::kInvalidArgument, "control must be a Control of this addon");
    }
    return Napi::ObjectWrap<ControlObject>::Unwrap(value.As<Napi::Object>())->control_;
  }

 private:
  Napi::Value cancel(const Napi::CallbackInfo& info) {
    control_->cancelled = true;
    return info.Env().Undefined();
  }
  Napi::Value done(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), static_cast<double>(control_->done.load()));
  }
  Napi::Value total(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), static_cast<double>(control_->total.load()));
  }

  static constexpr napi_type_tag kTag = {0x7261706f2d636f6eULL, 0x74726f6c2d763031ULL};

  std::shared_ptr<Control> control_ = std::make_shared<Control>();
};

/// An asynchronous call, which runs on another thread and is settled on the JS thread.
class Call {
 public:
  explicit Call(std::shared_ptr<Control> control) : control_(std::move(control)) {}
  virtual ~Call() = default;
  Control& control() { return *control_; }
  virtual void execute() = 0;              // on the other thread
  virtual void settle(Napi::Env env) = 0;  // on the JS thread
  virtual void drop() = 0;                 // on the JS thread, also if the call will never be settled

 private:
  std::shared_ptr<Control> control_;
};

/// The asynchronous calls of one environment. No thread of libuv waits for a call, so that no call delays the
/// environment's end. When the environment ends, its calls are cancelled, and none of them runs afterwards.
class Calls : public std::enable_shared_from_this<Calls> {
 public:
  static Calls& of(Napi::Env env) {
    auto& calls = env.GetInstanceData<AddonData>()->calls;
    if (!calls) calls = std::make_shared<Calls>(env);
    return *calls;
  }

  explicit Calls(Napi::Env env) : wake_(Wake::New(env, "rapo", 0, 1, this)) {
    wake_.Unref(env);
    // process.exit() runs no cleanup hook of the main thread. It runs static destructors (libtorch's, for
    // instance), which no running call survives.
    const auto process = env.Global().Get("process");
    const auto on = process.IsObject() ? process.As<Napi::Object>().Get("on") : process;
    if (on.IsFunction()) {
      const auto stop = [](const Napi::CallbackInfo& info) { of(info.Env()).stop(); };
      on.As<Napi::Function>().Call(process, {Napi::String::New(env, "exit"), Napi::Function::New(env, stop)});
    }
    // Hooks run in reverse order. This hook must run before Node's own, after which wake_ must not be used.
    const auto hook = [](void* calls) { static_cast<Calls*>(calls)->close(); };
    if (napi_add_env_cleanup_hook(env, hook, this) != napi_ok) throw Napi::Error::New(env);
  }

  /// Without an executor the call runs on a thread of the environment's own.
  void start(Napi::Env env, const std::shared_ptr<Call>& call, Executor* executor) {
    if (!executor) {
      if (!own_) own_ = std::make_unique<Executor>(kOwnThreads);
      executor = own_.get();
    }
    executor->post([self = shared_from_this(), call] { self->run(call); });
    if (pending_.empty()) wake_.Ref(env);
    pending_.insert(call);
  }

 private:
  static void on_wake(Napi::Env env, Napi::Function, Calls* calls, void*) {
    // Without an environment the calls have been dropped already.
    if (static_cast<napi_env>(env) != nullptr) calls->settle_next(env);
  }
  using Wake = Napi::TypedThreadSafeFunction<Calls, void, &Calls::on_wake>;

  void run(const std::shared_ptr<Call>& call) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (closed_) return;
      ++running_;
    }
    call->execute();
    std::lock_guard<std::mutex> lock(mutex_);
    --running_;
    idle_.notify_all();
    if (closed_) return;
    finished_.push_back(call);
    wake_.NonBlockingCall();
  }

  void settle_next(Napi::Env env) {
    std::shared_ptr<Call> call;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      if (finished_.empty()) return;
      call = std::move(finished_.front());
      finished_.pop_front();
    }
    pending_.erase(call);
    if (pending_.empty()) wake_.Unref(env);
    call->settle(env);
    call->drop();  // on this thread, since otherwise the other thread could release the JS objects
  }

  /// Cancels all calls and waits for those that are running.
  void stop(bool close = false) {
    std::unique_lock<std::mutex> lock(mutex_);
    closed_ = closed_ || close;
    for (const auto& call : pending_) call->control().abandoned = true;
    idle_.wait(lock, [this] { return running_ == 0; });
  }

  void close() {
    stop(true);
    wake_.Release();
    own_.reset();
    for (const auto& call : pending_) call->drop();
    pending_.clear();
    finished_.clear();
  }

  static constexpr std::size_t kOwnThreads = 4;  // as many as libuv has for such work

  // Used on the JS thread only:
  std::unordered_set<std::shared_ptr<Call>> pending_;  // started and not settled
  std::unique_ptr<Executor> own_;
  // Used on all threads:
  std::mutex mutex_;
  std::condition_variable idle_;
  std::deque<std::shared_ptr<Call>> finished_;  // finished and not settled; wake_ is called once for each
  int running_ = 0;
  bool closed_ = false;
  Wake wake_;
};

/// Runs work() off the JS thread, then to_js(env, result) on the JS thread, and resolves or rejects the
/// returned promise. keep: JS objects (borrowed arrays) that must outlive the work. executor: runs the work;
/// without one the environment's own threads do.
template <class Result>
class PromiseWorker : public Call {
 public:
  static Napi::Value run(Napi::Env env, std::shared_ptr<Control> control,
                         const std::vector<Napi::Object>& keep, std::function<Result()> work,
                         std::function<Napi::Value(Napi::Env, Result&)> to_js, Executor* executor = nullptr) {
    auto worker = std::make_shared<PromiseWorker>(std::move(control), std::move(work), std::move(to_js));
    for (auto& object : keep) worker->kept_.push_back(Napi::Persistent(object));
    Calls& calls = Calls::of(env);
    napi_value promise = nullptr;
    if (napi_create_promise(env, &worker->deferred_, &promise) != napi_ok) throw Napi::Error::New(env);
    calls.start(env, worker, executor);
    return Napi::Value(env, promise);
  }

  PromiseWorker(std::shared_ptr<Control> control, std::function<Result()> work,
                std::function<Napi::Value(Napi::Env, Result&)> to_js)
      : Call(std::move(control)), work_(std::move(work)), to_js_(std::move(to_js)) {}

  void execute() override {
    try {
      control().check();  // the call may have been aborted while it waited
      result_ = std::make_unique<Result>(work_());
    } catch (...) {
      failure_ = describe(std::current_exception());
    }
    work_ = nullptr;
  }

  // worker.terminate() makes JS refuse calls. Then nobody can be told, and an exception that left this
  // callback would abort the process.
  void settle(Napi::Env env) override {
    try {
      try {
        if (!result_) return reject(env, make_js_error(env, failure_));
        const Napi::Value value = to_js_(env, *result_);
        napi_resolve_deferred(env, deferred_, value);
      } catch (const Napi::Error&) {
        throw;
      } catch (...) {
        reject(env, make_js_error(env, describe(std::current_exception())));
      }
    } catch (const Napi::Error& error) {
      if (!error.IsEmpty()) reject(env, error.Value());
    } catch (...) {
    }
  }

  void drop() override {
    kept_.clear();
    work_ = nullptr;
    result_.reset();
  }

 private:
  void reject(Napi::Env env, const Napi::Value& error) { napi_reject_deferred(env, deferred_, error); }

  std::function<Result()> work_;
  std::function<Napi::Value(Napi::Env, Result&)> to_js_;
  std::vector<Napi::ObjectReference> kept_;
  std::unique_ptr<Result> result_;
  Failure failure_;
  napi_deferred deferred_ = nullptr;
};

}  // namespace rapo::bindings
