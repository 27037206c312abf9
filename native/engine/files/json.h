// A small strict JSON reader: safetensors headers and the index of a model's shards.
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

  /// The member of that name; null if it is absent or if this is not an object.
  const Json* find(std::string_view name) const;
  /// A number that is an integer of 64 bits; false otherwise.
  bool to_integer(std::int64_t* out) const;
};

/// Parses one value that takes up the whole text. Throws Error(kFormat) with `what` and the byte offset on
/// any deviation from RFC 8259, a repeated key, invalid UTF-8, or nesting deeper than 64.
Json parse_json(std::string_view text, const std::string& what);

/// A JSON string literal.
std::string quote_json(std::string_view text);

}  // namespace rapo
