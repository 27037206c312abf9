// The ranks of a run for JS: lib/world/world.ts checks arguments and orders the calls.
#pragma once

#include <napi.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "arrays.h"
#include "engine/comm/world.h"
#include "engine_thread.h"

namespace rapo::bindings {

constexpr napi_type_tag kWorldTag = {0x7261706f2d776f72ULL, 0x6c642d7630303121ULL};
constexpr napi_type_tag kStoreTag = {0x7261706f2d73746fULL, 0x72652d7630303121ULL};

inline std::shared_ptr<World> world_of(const Napi::Value& value) {
  if (!value.IsExternal() || !value.As<Napi::External<std::shared_ptr<World>>>().CheckTypeTag(&kWorldTag)) {
    invalid("the world must be a handle of openWorld()");
  }
  return *value.As<Napi::External<std::shared_ptr<World>>>().Data();
}

/// An opaque handle that keeps what it points to.
template <class T>
Napi::Value external(Napi::Env env, std::shared_ptr<T> held, const napi_type_tag& tag) {
  auto* data = new std::shared_ptr<T>(std::move(held));
  const auto handle =
      Napi::External<std::shared_ptr<T>>::New(env, data, [](Napi::Env, std::shared_ptr<T>* p) { delete p; });
  handle.TypeTag(&tag);
  return handle;
}

/// openWorld(place, control) -> Promise<handle>
inline Napi::Value open_world(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    if (!info[0].IsObject()) invalid("place must be an object");
    const auto p = info[0].As<Napi::Object>();
    WorldPlace place;
    place.rank = integer(p, "rank");
    place.size = integer(p, "size");
    place.host = string(p, "host");
    place.port = integer(p, "port");
    place.has_store = boolean(p, "hasStore");
    place.prefix = string(p, "prefix");
    place.interface = string(p, "interface");
    place.address = string(p, "address");
    place.device = string(p, "device");
    place.timeout_ms = integer(p, "timeoutMs");
    return on_engine<std::shared_ptr<World>>(
        info.Env(), ControlObject::get(info[1]),
        [place](Control& control) { return World::open(place, control); },
        [](Napi::Env env, std::shared_ptr<World>& world) {
          return external(env, std::move(world), kWorldTag);
        });
  });
}

/// worldGather(handle, what, bytes) -> Promise<Uint8Array[]>
inline Napi::Value world_gather(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    auto world = world_of(info[0]);
    const std::string what = info[1].ToString();
    auto own = copy<std::uint8_t>(info[2], "bytes");
    return on_engine<std::vector<World::Bytes>>(
        info.Env(), std::make_shared<Control>(),
        [world, what, own = std::move(own)](Control& control) { return world->gather(what, own, control); },
        [](Napi::Env env, std::vector<World::Bytes>& parts) -> Napi::Value {
          auto array = Napi::Array::New(env, parts.size());
          for (std::uint32_t i = 0; i < parts.size(); ++i) array.Set(i, to_js(env, parts[i]));
          return array;
        });
  });
}

/// worldReport(handle, message) -> Promise<undefined>
inline Napi::Value world_report(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    auto world = world_of(info[0]);
    const std::string message = info[1].ToString();
    return on_engine(info.Env(), [world, message](Control&) { world->report_failure(message); });
  });
}

/// worldClose(handle) -> Promise<undefined>
inline Napi::Value world_close(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    auto world = world_of(info[0]);
    return on_engine(info.Env(), [world](Control&) { world->close(); });
  });
}

/// openStore() -> { handle, port }: a store that ranks on other processes can meet in, while the handle lives
inline Napi::Value open_store(const Napi::CallbackInfo& info) {
  return guarded(info, [&] {
    auto store = StoreServer::open();
    auto result = Napi::Object::New(info.Env());
    result.Set("port", static_cast<double>(store->port()));
    result.Set("handle", external(info.Env(), std::move(store), kStoreTag));
    return result;
  });
}

inline void define_world(Napi::Env env, Napi::Object exports) {
  exports.Set("worldSupported", World::is_supported());
  exports.Set("openWorld", Napi::Function::New<open_world>(env));
  exports.Set("worldGather", Napi::Function::New<world_gather>(env));
  exports.Set("worldReport", Napi::Function::New<world_report>(env));
  exports.Set("worldClose", Napi::Function::New<world_close>(env));
  exports.Set("openStore", Napi::Function::New<open_store>(env));
}

}  // namespace rapo::bindings
