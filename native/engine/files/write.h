// Writing safetensors files, whole models and small text files so that no path ever holds a part.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "files/safetensors.h"

namespace rapo {

/// Writes to a temporary name in the same directory, syncs, renames: the path holds the old content or the
/// new, never a part. Throws Error(kIo), and then nothing of the attempt is left.
void write_safetensors(const std::string& path, const std::vector<StoredTensor>& tensors,
                       const std::map<std::string, std::string>& metadata);

/// A model's tensors in dir: model.safetensors, or shards of at most max_shard_bytes (a larger tensor alone)
/// and their model.safetensors.index.json, named as transformers does; the same promise for each file, and
/// what an earlier call left under other names is removed. convert: gives each tensor's bytes in `dtype` when
/// its turn comes, so that no second copy of all is held; absent: as they are. metadata.total_size counts
/// bytes.
void write_model(const std::string& dir, std::vector<StoredTensor> tensors, std::int64_t max_shard_bytes,
                 const std::string& dtype = "",
                 const std::function<std::shared_ptr<const void>(const StoredTensor&)>& convert = {});

/// The same promise for a small text file.
void write_text_file(const std::string& path, const std::string& text);

}  // namespace rapo
