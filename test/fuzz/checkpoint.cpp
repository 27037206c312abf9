// Checkpoint: any model.safetensors.index.json maps just the tensors that its shards hold, or throws an Error.
#include "engine/files/safetensors.h"
#include "engine/files/write.h"
#include "target.h"

namespace {

struct Shards {
  Scratch scratch;
  Shards() {
    const std::uint8_t bytes[4] = {1, 2, 3, 4};
    const auto* data = reinterpret_cast<const std::byte*>(bytes);
    rapo::write_safetensors(scratch.path() + "/a", {{"x", "U8", {4}, data, 4}, {"y", "F32", {1}, data, 4}}, {});
    rapo::write_safetensors(scratch.path() + "/b", {{"z", "BF16", {2, 1}, data, 4}}, {{"k", "v"}});
  }
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const Shards shards;
  shards.scratch.write("model.safetensors.index.json", data, size);
  try {
    const rapo::Checkpoint checkpoint(shards.scratch.path());
    for (const auto& [name, tensor] : checkpoint.tensors()) {
      const bool is_in_a = name == "x" || name == "y";
      require(is_in_a || name == "z", "only the shards' tensors are there");
      require(checkpoint.file_of(name).back() == (is_in_a ? 'a' : 'b'), "a tensor is where the index says");
      require(std::to_integer<int>(tensor.data[3]) == 4, "a tensor is whole");
    }
  } catch (const rapo::Error& error) {
    require(error.code() == rapo::ErrorCode::kFormat || error.code() == rapo::ErrorCode::kIo,
            "the error is one of content, or of a shard that is not there");
  }
  return 0;
}
