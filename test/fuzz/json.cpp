// parse_json: any text is a value or Error(kFormat); a string that is quoted again reads back as it was.
#include "engine/files/json.h"

#include "target.h"

namespace {

void read_numbers(const rapo::Json& value) {
  std::int64_t integer = 0;
  (void)value.to_integer(&integer);
  if (value.type == rapo::Json::Type::kString) {
    const rapo::Json again = rapo::parse_json(rapo::quote_json(value.text), "own text");
    require(again.text == value.text, "the quoted text reads back");
  }
  for (const rapo::Json& item : value.items) read_numbers(item);
  for (const auto& [key, member] : value.members) {
    require(value.find(key) == &member, "find() returns the member of that name");
    read_numbers(member);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    const rapo::Json value = rapo::parse_json({reinterpret_cast<const char*>(data), size}, "input");
    read_numbers(value);
  } catch (const rapo::Error& error) {
    require(error.code() == rapo::ErrorCode::kFormat, "the error is one of format");
    require(std::string(error.what()).rfind("input: ", 0) == 0,
            "the input is at fault, not what was written");
  }
  return 0;
}
