// One promise worker for every asynchronous call, and the JS face of Control (cancel and progress).
#pragma once

#include <napi.h>

#include <exception>
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
    return DefineClass(
        env, "Control",
        {InstanceMethod<&ControlObject::cancel>("cancel"), InstanceAccessor<&ControlObject::done>("done"),
         InstanceAccessor<&ControlObject::total>("total")});
  }

  explicit ControlObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<ControlObject>(info) {
    info.This().As<Napi::Object>().TypeTag(&kTag);
  }

  /// The Control behind a JS value, or a fresh one where the caller passed none.
  static std::shared_ptr<Control> get(const Napi::Value& value) {
    if (value.IsUndefined() || value.IsNull()) return std::make_shared<Control>();
    // Unwrapping an object of another class would read its memory as if it were ours.
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

/// Runs work() off the JS thread, then to_js(env, result) on it; resolves or rejects the promise it returns.
/// keep: JS objects (borrowed arrays) that must outlive the work. When the environment is torn down meanwhile
/// (worker.terminate(), process.exit()), Node drops what is still queued and waits for what is running: no
/// hook of N-API comes early enough to cancel it.
template <class Result>
class PromiseWorker : public Napi::AsyncWorker {
 public:
  static Napi::Value run(Napi::Env env, std::shared_ptr<Control> control,
                         const std::vector<Napi::Object>& keep, std::function<Result()> work,
                         std::function<Napi::Value(Napi::Env, Result&)> to_js) {
    auto* worker = new PromiseWorker(env, std::move(control), std::move(work), std::move(to_js));
    for (auto& object : keep) worker->kept_.push_back(Napi::Persistent(object));
    const Napi::Value promise(env, worker->promise_);
    worker->Queue();
    return promise;
  }

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
    settle([&] {
      try {
        napi_resolve_deferred(Env(), deferred_, to_js_(Env(), *result_));
      } catch (const Napi::Error&) {
        throw;
      } catch (...) {
        napi_reject_deferred(Env(), deferred_, make_js_error(Env(), describe(std::current_exception())));
      }
    });
  }

  void OnError(const Napi::Error&) override {
    settle([&] { napi_reject_deferred(Env(), deferred_, make_js_error(Env(), failure_)); });
  }

 private:
  PromiseWorker(Napi::Env env, std::shared_ptr<Control> control, std::function<Result()> work,
                std::function<Napi::Value(Napi::Env, Result&)> to_js)
      : Napi::AsyncWorker(env),
        control_(std::move(control)),
        work_(std::move(work)),
        to_js_(std::move(to_js)) {
    if (napi_create_promise(env, &deferred_, &promise_) != napi_ok) throw Napi::Error::New(env);
  }

  // JS may be refusing calls already (worker.terminate()); then there is nobody left to tell, and an
  // exception that left a callback would abort the process.
  template <class F>
  void settle(F&& body) {
    try {
      body();
    } catch (const Napi::Error& error) {
      if (!error.IsEmpty()) napi_reject_deferred(Env(), deferred_, error.Value());
    } catch (...) {
    }
  }

  std::shared_ptr<Control> control_;
  std::function<Result()> work_;
  std::function<Napi::Value(Napi::Env, Result&)> to_js_;
  std::vector<Napi::ObjectReference> kept_;
  std::unique_ptr<Result> result_;
  Failure failure_;
  napi_deferred deferred_ = nullptr;
  napi_value promise_ = nullptr;  // valid while the handle scope of run() is
};

}  // namespace rapo::bindings
