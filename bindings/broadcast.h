// Groups with the workers of inference servers for JS: lib/model/broadcast.ts checks arguments.
#pragma once

#include <napi.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "arrays.h"
#include "async.h"
#include "engine/comm/broadcast.h"
#include "world.h"

namespace rapo::bindings {

constexpr napi_type_tag kGroupTag = {0x7261706f2d67726fULL, 0x75702d7630303121ULL};

/// A group, and what its workers need to find it. The store must live as long as the group.
struct OpenGroup {
  std::shared_ptr<GroupStore> store;
  std::unique_ptr<BroadcastGroup> group;
  std::vector<std::uint8_t> id;
};

inline std::shared_ptr<OpenGroup>& group_handle(const Napi::Value& value) {
  using Held = std::shared_ptr<OpenGroup>;
  if (!value.IsExternal() || !value.As<Napi::External<Held>>().CheckTypeTag(&kGroupTag)) {
    invalid("the group must be a handle of openGroup()");
  }
  return *value.As<Napi::External<Held>>().Data();
}

inline std::shared_ptr<OpenGroup> group_of(const Napi::Value& value) {
  auto group = group_handle(value);
  if (!group) invalid("the group was closed");
  return group;
}

/// checkNccl(library): throws where NCCL cannot be loaded.
inline Napi::Value check_nccl(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    rapo::check_nccl(info[0].ToString());
    return info.Env().Undefined();
  });
}

/// openGroup({ backend, device, library, name, address, timeoutMs }, control) -> Promise<{ handle, id, port
/// }>
inline Napi::Value open_group(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    if (!info[0].IsObject()) invalid("options must be an object");
    const auto o = info[0].As<Napi::Object>();
    const auto backend = string(o, "backend"), device = string(o, "device"), library = string(o, "library");
    const auto name = string(o, "name"), address = string(o, "address");
    const auto timeout_ms = integer(o, "timeoutMs");
    return PromiseWorker<std::shared_ptr<OpenGroup>>::run(
        info.Env(), ControlObject::get(info[1]), {},
        [=] {
          auto open = std::make_shared<OpenGroup>();
          if (!name.empty()) open->store = GroupStore::open(name);
          if (backend == "nccl") {
            auto nccl = open_nccl(library, device, !open->store, open->id);
            if (open->store) open->store->offer(open->id);
            open->group = std::make_unique<BroadcastGroup>(std::move(nccl));
          } else {
            if (!open->store) invalid("a group over Gloo needs a name");
            open->group = std::make_unique<BroadcastGroup>(open->store->gloo(address, timeout_ms));
          }
          return open;
        },
        [](Napi::Env env, std::shared_ptr<OpenGroup>& open) -> Napi::Value {
          auto result = Napi::Object::New(env);
          result.Set("id", to_js(env, open->id));
          result.Set("port", static_cast<double>(open->store ? open->store->port() : 0));
          result.Set("handle", external(env, std::move(open), kGroupTag));
          return result;
        });
  });
}

/// joinGroup(handle, size, timeoutMs, control) -> Promise<undefined>
inline Napi::Value join_group(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    auto open = group_of(info[0]);
    const auto size = info[1].ToNumber().Int64Value(), timeout_ms = info[2].ToNumber().Int64Value();
    const auto control = ControlObject::get(info[3]);
    return PromiseWorker<bool>::run(
        info.Env(), control, {},
        [open, size, timeout_ms, control] {
          open->group->join(size, Patience(timeout_ms, *control));
          return true;
        },
        [](Napi::Env env, bool&) { return env.Undefined(); });
  });
}

/// closeGroup(handle): the group ends when its calls have ended.
inline Napi::Value close_group(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    group_handle(info[0]).reset();
    return info.Env().Undefined();
  });
}

inline void define_broadcast(Napi::Env env, Napi::Object exports) {
  exports.Set("checkNccl", Napi::Function::New<check_nccl>(env));
  exports.Set("openGroup", Napi::Function::New<open_group>(env));
  exports.Set("joinGroup", Napi::Function::New<join_group>(env));
  exports.Set("closeGroup", Napi::Function::New<close_group>(env));
}

}  // namespace rapo::bindings
