// Writes safetensors files, whole models and small text files. No path ever holds a partly written file.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "control.h"
#include "files/safetensors.h"

namespace rapo {

/// Writes a temporary file in the same directory, syncs it and renames it, so that the path holds either the
/// old or the new content. Throws Error: kIo, or kAborted between tensors; the temporary file is then
/// removed.
void write_safetensors(const std::string& path, const std::vector<StoredTensor>& tensors,
                       const std::map<std::string, std::string>& metadata, const Control& control = {});

/// Bytes of one of a file's tensors.
struct FilePart {
  std::size_t tensor, offset;  // which tensor, and where in it
  const std::byte* data;
  std::size_t bytes;
};

/// Writes the header and these parts into a file that other processes write at the same time, each with the
/// same tensors, whose data is not read, and other parts. The file is whole, and synced, when all have
/// returned; the caller renames it then. Throws Error: kIo, kAborted.
void write_safetensors_parts(const std::string& path, const std::vector<StoredTensor>& tensors,
                             const std::map<std::string, std::string>& metadata,
                             const std::vector<FilePart>& parts, const Control& control);

/// Writes a model's tensors into dir, as model.safetensors or as shards of at most max_shard_bytes with
/// model.safetensors.index.json, named as in transformers. A tensor larger than max_shard_bytes has a shard
/// of its own. Each file is written as by write_safetensors(); files of an earlier model under other names
/// are removed. convert returns a tensor's bytes in `dtype` at the moment when the tensor is written, so that
/// no second copy of the model is held; without convert the stored bytes are written. metadata.total_size
/// counts bytes.
void write_model(const std::string& dir, std::vector<StoredTensor> tensors, std::int64_t max_shard_bytes,
                 const Control& control, const std::string& dtype = "",
                 const std::function<std::shared_ptr<const void>(const StoredTensor&)>& convert = {});

/// Writes a small text file in the same way.
void write_text_file(const std::string& path, const std::string& text);

}  // namespace rapo
