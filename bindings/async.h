// One promise worker for every asynchronous call, and the JS face of Control (cancel and progress).
#pragma once

#include <napi.h>

#include <functional>
#include <memory>
#include <utility>
#include <vector>

#include "control.h"
#include "errors.h"

namespace rapo::bindings {

/// new Control(): cancel() stops the call it was given to; done and total tell its progress.
class ControlObject : public Napi::ObjectWrap<ControlObject> {
 public:
  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "Control",
                       {InstanceMethod<&ControlObject::cancel>("cancel"), InstanceAccessor<&ControlObject::done>("done"),
                        InstanceAccessor<&ControlObject::total>("total")});
  }

  explicit ControlObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<ControlObject>(info) {}

  /// The Control behind a JS value, or a fresh one where the caller passed none.
  static std::shared_ptr<Control> get(const Napi::Value& value) {
    if (!value.IsObject()) return std::make_shared<Control>();
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

  std::shared_ptr<Control> control_ = std::make_shared<Control>();
};

/// Runs work() off the JS thread, then to_js(env, result) on it; resolves or rejects the promise it returns.
/// keep: JS objects (borrowed arrays) that must outlive the work. When the environment is torn down meanwhile
/// (worker.terminate()), the cancel flag is raised, so that Node's wait for the work is short.
template <class Result>
class PromiseWorker : public Napi::AsyncWorker {
 public:
  static Napi::Value run(Napi::Env env, std::shared_ptr<Control> control, std::vector<Napi::Object> keep,
                         std::function<Result()> work, std::function<Napi::Value(Napi::Env, Result&)> to_js) {
    auto* worker = new PromiseWorker(env, std::move(control), std::move(work), std::move(to_js));
    for (auto& object : keep) worker->kept_.push_back(Napi::Persistent(object));
    const auto promise = worker->deferred_.Promise();
    worker->Queue();
    return promise;
  }

  ~PromiseWorker() override { napi_remove_env_cleanup_hook(Env(), &raise_cancel, control_.get()); }

 protected:
  void Execute() override {
    try {
      result_ = std::make_unique<Result>(work_());
    } catch (...) {
      failure_ = describe(std::current_exception());
      SetError(failure_.message.empty() ? "failed" : failure_.message);
    }
  }

  void OnOK() override {
    try {
      deferred_.Resolve(to_js_(Env(), *result_));
    } catch (const Napi::Error& error) {
      deferred_.Reject(error.Value());
    } catch (...) {
      deferred_.Reject(make_js_error(Env(), describe(std::current_exception())));
    }
  }

  void OnError(const Napi::Error&) override { deferred_.Reject(make_js_error(Env(), failure_)); }

 private:
  PromiseWorker(Napi::Env env, std::shared_ptr<Control> control, std::function<Result()> work,
                std::function<Napi::Value(Napi::Env, Result&)> to_js)
      : Napi::AsyncWorker(env),
        control_(std::move(control)),
        work_(std::move(work)),
        to_js_(std::move(to_js)),
        deferred_(Napi::Promise::Deferred::New(env)) {
    napi_add_env_cleanup_hook(env, &raise_cancel, control_.get());
  }

  static void raise_cancel(void* control) { static_cast<Control*>(control)->cancelled = true; }

  std::shared_ptr<Control> control_;
  std::function<Result()> work_;
  std::function<Napi::Value(Napi::Env, Result&)> to_js_;
  std::vector<Napi::ObjectReference> kept_;
  std::unique_ptr<Result> result_;
  Failure failure_;
  Napi::Promise::Deferred deferred_;
};

}  // namespace rapo::bindings
