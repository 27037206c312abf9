// A small strict JSON reader: config.json and safetensors headers. Keeps members in order and numbers as
// written, so that a configuration can be changed in one field and written back.
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
  /// The member of that name, or null when absent or not an object.
  const Json* find(std::string_view name) const;
  /// Replaces the member or appends it.
  void set(const std::string& name, Json value);
  /// A number that is an integer of 64 bits; false otherwise.
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
