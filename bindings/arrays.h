// Checked views of JS values. Dtype, length and detachment are checked here, once; other code relies on it.
#pragma once

#include <napi.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "error.h"

namespace rapo::bindings {

template <class T>
constexpr napi_typedarray_type typed_array_type() {
  if constexpr (std::is_same_v<T, float>) {
    return napi_float32_array;
  } else if constexpr (std::is_same_v<T, double>) {
    return napi_float64_array;
  } else if constexpr (std::is_same_v<T, std::int32_t>) {
    return napi_int32_array;
  } else if constexpr (std::is_same_v<T, std::uint8_t>) {
    return napi_uint8_array;
  } else if constexpr (std::is_same_v<T, std::uint16_t>) {
    return napi_uint16_array;
  } else {
    static_assert(std::is_same_v<T, std::int64_t>, "no typed array holds this type");
    return napi_bigint64_array;
  }
}

inline const char* typed_array_name(napi_typedarray_type type) {
  switch (type) {
    case napi_float32_array:
      return "Float32Array";
    case napi_int32_array:
      return "Int32Array";
    case napi_uint8_array:
      return "Uint8Array";
    case napi_uint16_array:
      return "Uint16Array";
    case napi_bigint64_array:
      return "BigInt64Array";
    case napi_float64_array:
      return "Float64Array";
    default:
      return "another typed array";
  }
}

/// A borrowed view. Valid only while the JS array is referenced.
template <class T>
struct View {
  T* data = nullptr;
  std::int64_t size = 0;
};

/// A typed array of any kind, before its elements have a C++ type.
struct RawView {
  napi_typedarray_type type = napi_int8_array;
  void* data = nullptr;
  std::int64_t size = 0;  // elements
};

/// Accepts ArrayBuffer and SharedArrayBuffer, with any byte offset. A detached array throws.
inline RawView raw_view(const Napi::Value& value, const std::string& name) {
  if (!value.IsTypedArray()) invalid(name + " must be a typed array");
  RawView v;
  std::size_t length = 0, offset = 0;
  napi_value buffer = nullptr;
  if (napi_get_typedarray_info(value.Env(), value, &v.type, &length, &v.data, &buffer, &offset) != napi_ok) {
    invalid(name + " could not be read");
  }
  bool detached = false;  // a SharedArrayBuffer cannot be detached
  if (napi_is_detached_arraybuffer(value.Env(), buffer, &detached) == napi_ok && detached) {
    invalid(name + " is detached: its buffer was transferred elsewhere");
  }
  v.size = static_cast<std::int64_t>(length);
  return v;
}

/// The elements of a typed array of one kind. expected < 0: any length. Throws kInvalidArgument that names
/// the field.
template <class T>
View<T> view(const Napi::Value& value, const std::string& name, std::int64_t expected = -1) {
  constexpr auto wanted = typed_array_type<T>();
  if (!value.IsTypedArray()) invalid(name + " must be a " + typed_array_name(wanted));
  const auto raw = raw_view(value, name);
  if (raw.type != wanted) {
    invalid(name + " must be a " + typed_array_name(wanted) + ", not a " + typed_array_name(raw.type));
  }
  if (expected >= 0 && raw.size != expected) {
    invalid(name + " has " + std::to_string(raw.size) + " elements, expected " + std::to_string(expected));
  }
  return {static_cast<T*>(raw.data), raw.size};
}

template <class T>
std::vector<T> copy(const Napi::Value& value, const std::string& name, std::int64_t expected = -1) {
  const auto v = view<T>(value, name, expected);
  return std::vector<T>(v.data, v.data + v.size);
}

/// A new typed array with the vector's elements.
template <class T>
Napi::Value to_js(Napi::Env env, const std::vector<T>& values) {
  auto array = Napi::TypedArrayOf<T>::New(env, values.size());
  if (!values.empty()) std::memcpy(array.Data(), values.data(), values.size() * sizeof(T));
  return array;
}

inline bool present(const Napi::Value& value) { return !value.IsUndefined() && !value.IsNull(); }

inline double number(const Napi::Object& object, const char* name) {
  const Napi::Value value = object.Get(name);
  if (!value.IsNumber()) invalid(std::string(name) + " must be a number");
  return value.As<Napi::Number>().DoubleValue();
}

inline std::int64_t integer(const Napi::Object& object, const char* name) {
  const double value = number(object, name);
  if (!(value >= -9007199254740991.0 && value <= 9007199254740991.0) || value != std::trunc(value)) {
    invalid(std::string(name) + " must be an integer, got " + std::to_string(value));
  }
  return static_cast<std::int64_t>(value);
}

inline std::string string(const Napi::Object& object, const char* name) {
  const Napi::Value value = object.Get(name);
  if (!value.IsString()) invalid(std::string(name) + " must be a string");
  return value.As<Napi::String>().Utf8Value();
}

inline bool boolean(const Napi::Object& object, const char* name) {
  const Napi::Value value = object.Get(name);
  if (!value.IsBoolean()) invalid(std::string(name) + " must be true or false");
  return value.As<Napi::Boolean>().Value();
}

}  // namespace rapo::bindings
