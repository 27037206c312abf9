// A small strict JSON reader for config.json and safetensors headers. It keeps the order of members and the
// digits of numbers, so that a configuration can be written back with one field changed.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace rapo {

struct Json {
  enum class Type { kNull, kBool, kNumber, kString, kArray, kObject };

  Type type = Type::kNull;
  bool boolean = false;
  std::string text;  // a string's value; a number's digits as written
  std::vector<Json> items;
  std::vector<std::pair<std::string, Json>> members;

  static Json string(std::string value);

  bool is_null() const { return type == Type::kNull; }
  /// The member of that name; null if it is absent or if this is not an object.
  const Json* find(std::string_view name) const;
  /// Replaces the member or appends it.
  void set(const std::string& name, Json value);
  /// Sets *out if the value is an integer that fits 64 bits; returns false otherwise.
  bool to_integer(std::int64_t* out) const;
  double to_double() const;
};

/// Parses one value that takes up the whole text. Throws Error(kFormat) with `what` and the byte offset on
/// any deviation from RFC 8259, a repeated key, invalid UTF-8, or nesting deeper than 64.
Json parse_json(std::string_view text, const std::string& what);

/// Two-space indented text, ending in a newline at the top level.
std::string write_json(const Json& value);
/// A JSON string literal.
std::string quote_json(std::string_view text);

}  // namespace rapo
