// SafetensorsFile: any file is a set of tensors that lie inside it without holes, or Error(kFormat).
#include "engine/files/safetensors.h"

#include <algorithm>

#include "target.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Scratch scratch;
  const std::string path = scratch.write("input.safetensors", data, size);
  try {
    const rapo::SafetensorsFile file(path);
    std::size_t total = 0;
    unsigned sum = 0;
    const std::byte* first = nullptr;
    const std::byte* end = nullptr;
    for (const auto& [name, tensor] : file.tensors()) {
      require(tensor.name == name, "a tensor is filed under its name");
      total += tensor.bytes;
      first = first ? std::min(first, tensor.data) : tensor.data;
      end = std::max(end, tensor.data + tensor.bytes);
      for (std::size_t i = 0; i < tensor.bytes; ++i) sum += std::to_integer<unsigned>(tensor.data[i]);
    }
    std::uint64_t header = 0;
    for (int i = 7; i >= 0; --i) header = (header << 8) | data[i];
    unsigned expected = 0;
    for (std::size_t i = 8 + static_cast<std::size_t>(header); i < size; ++i) expected += data[i];
    require(total == size - 8 - header, "the tensors take up all the data");
    require(static_cast<std::size_t>(end - first) == total, "the tensors lie inside the file");
    require(sum == expected, "the tensors hold the file's bytes, each once");
  } catch (const rapo::Error& error) {
    require(error.code() == rapo::ErrorCode::kFormat, "the error is one of format");
  }
  return 0;
}
