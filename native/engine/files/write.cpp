#include "files/write.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <regex>
#include <set>
#include <system_error>
#include <utility>

#include "files/io.h"
#include "files/json.h"

namespace rapo {
namespace {

void write_all(int fd, const void* data, std::size_t bytes, const std::string& path) {
  const auto* at = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t n = ::write(fd, at, std::min<std::size_t>(bytes, std::size_t{1} << 30));
    if (n < 0) {
      if (errno == EINTR) continue;
      fail_io("cannot write", path);
    }
    at += n;
    bytes -= static_cast<std::size_t>(n);
  }
}

std::string directory_of(const std::string& path) {
  const auto slash = path.find_last_of('/');
  return slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
}

void write_atomically(const std::string& path, const std::function<void(int fd)>& content) {
  const std::string temporary = path + ".tmp." + std::to_string(::getpid());
  try {
    Descriptor file{::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666)};
    if (file.fd < 0) fail_io("cannot create", temporary);
    content(file.fd);
    if (::fsync(file.fd) != 0) fail_io("cannot write", path);
    const int fd = file.fd;
    file.fd = -1;
    if (::close(fd) != 0) fail_io("cannot write", path);
    if (::rename(temporary.c_str(), path.c_str()) != 0) fail_io("cannot rename a temporary file to", path);
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
  // The rename survives a crash only once the directory is synced. Some file systems refuse to sync a
  // directory, which does no harm.
  Descriptor directory{::open(directory_of(path).c_str(), O_RDONLY | O_CLOEXEC)};
  if (directory.fd >= 0) (void)::fsync(directory.fd);
}

using Convert = std::function<std::shared_ptr<const void>(const StoredTensor&)>;

/// What stands before the tensors' bytes, which follow each other in their order.
std::string header_of(const std::vector<StoredTensor>& tensors,
                      const std::map<std::string, std::string>& metadata) {
  std::string header = "{";
  if (!metadata.empty()) {
    header += "\"__metadata__\":{";
    for (const auto& [key, value] : metadata) {
      if (header.back() != '{') header += ",";
      header += quote_json(key) + ":" + quote_json(value);
    }
    header += "}";
  }
  std::size_t offset = 0;
  for (const StoredTensor& tensor : tensors) {
    if (header.size() > 1) header += ",";
    header += quote_json(tensor.name) + ":{\"dtype\":" + quote_json(tensor.dtype) + ",\"shape\":[";
    for (std::size_t i = 0; i < tensor.shape.size(); ++i) {
      if (i > 0) header += ",";
      header += std::to_string(tensor.shape[i]);
    }
    header +=
        "],\"data_offsets\":[" + std::to_string(offset) + "," + std::to_string(offset + tensor.bytes) + "]}";
    offset += tensor.bytes;
  }
  header += "}";
  header.resize((header.size() + 7) / 8 * 8, ' ');  // so that the data begins at a multiple of 8
  std::string length;
  for (int i = 0; i < 8; ++i) length += static_cast<char>(header.size() >> (8 * i) & 0xff);
  return length + header;
}

void write_file(const std::string& path, const std::vector<StoredTensor>& tensors,
                const std::map<std::string, std::string>& metadata, const Control& control,
                const Convert& convert) {
  const std::string header = header_of(tensors, metadata);
  write_atomically(path, [&](int fd) {
    write_all(fd, header.data(), header.size(), path);
    for (const StoredTensor& tensor : tensors) {
      control.check();
      const auto converted = convert ? convert(tensor) : nullptr;
      write_all(fd, converted ? converted.get() : tensor.data, tensor.bytes, path);
    }
  });
}

/// Whether transformers or write_model() gives a model's file this name.
bool is_model_file(const std::string& name) {
  static const std::regex shard("model-\\d{5,}-of-\\d{5,}\\.safetensors");
  return name == "model.safetensors" || name == "model.safetensors.index.json" ||
         std::regex_match(name, shard);
}

/// Removes an earlier model's files from dir, except the files just written.
void remove_stale(const std::string& dir, const std::set<std::string>& written) {
  std::error_code error;
  std::filesystem::directory_iterator entry(dir, error);
  for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error)) {
    const std::string name = entry->path().filename();
    if (is_model_file(name) && written.count(name) == 0) std::filesystem::remove(entry->path(), error);
    if (error)
      throw Error(ErrorCode::kIo, "cannot remove " + entry->path().string() + ": " + error.message());
  }
  if (error) throw Error(ErrorCode::kIo, "cannot list " + dir + ": " + error.message());
}

}  // namespace

void write_safetensors(const std::string& path, const std::vector<StoredTensor>& tensors,
                       const std::map<std::string, std::string>& metadata, const Control& control) {
  write_file(path, tensors, metadata, control, {});
}

void write_safetensors_parts(const std::string& path, const std::vector<StoredTensor>& tensors,
                             const std::map<std::string, std::string>& metadata,
                             const std::vector<FilePart>& parts, const Control& control) {
  const std::string header = header_of(tensors, metadata);
  std::vector<std::size_t> begins;
  std::size_t size = header.size();
  for (const StoredTensor& tensor : tensors) {
    begins.push_back(size);
    size += tensor.bytes;
  }
  Descriptor file{::open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666)};
  if (file.fd < 0) fail_io("cannot create", path);
  const auto write_at = [&](std::size_t offset, const void* data, std::size_t bytes) {
    if (::lseek(file.fd, static_cast<off_t>(offset), SEEK_SET) < 0) fail_io("cannot write", path);
    write_all(file.fd, data, bytes, path);
  };
  // Every process gives it the same size, and the header's same bytes.
  if (::ftruncate(file.fd, static_cast<off_t>(size)) != 0) fail_io("cannot write", path);
  write_at(0, header.data(), header.size());
  for (const FilePart& part : parts) {
    control.check();
    write_at(begins[part.tensor] + part.offset, part.data, part.bytes);
  }
  if (::fsync(file.fd) != 0) fail_io("cannot write", path);
  const int fd = std::exchange(file.fd, -1);
  if (::close(fd) != 0) fail_io("cannot write", path);
}

void write_model(const std::string& dir, std::vector<StoredTensor> tensors, std::int64_t max_shard_bytes,
                 const Control& control, const std::string& dtype, const Convert& convert) {
  std::vector<std::size_t> ends;  // of the shards
  std::uint64_t total = 0, shard = 0;
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    StoredTensor& tensor = tensors[i];
    if (convert) tensor.bytes = tensor.bytes / width_of(tensor.dtype) * width_of(dtype);
    total += tensor.bytes;
    if (shard > 0 && shard + tensor.bytes > static_cast<std::uint64_t>(max_shard_bytes)) {
      ends.push_back(i);
      shard = 0;
    }
    shard += tensor.bytes;
  }
  ends.push_back(tensors.size());

  const auto name_of = [&](std::size_t s) {
    if (ends.size() == 1) return std::string("model.safetensors");
    char name[64];
    std::snprintf(name, sizeof name, "model-%05zu-of-%05zu.safetensors", s + 1, ends.size());
    return std::string(name);
  };
  std::set<std::string> written;
  std::string map;
  std::size_t begin = 0;
  for (std::size_t s = 0; s < ends.size(); ++s) {
    const std::string name = name_of(s);
    std::vector<StoredTensor> part(tensors.begin() + static_cast<std::ptrdiff_t>(begin),
                                   tensors.begin() + static_cast<std::ptrdiff_t>(ends[s]));
    for (StoredTensor& tensor : part) {
      if (convert) tensor.dtype = dtype;
      map += (map.empty() ? "\n    " : ",\n    ") + quote_json(tensor.name) + ": " + quote_json(name);
    }
    write_file(dir + "/" + name, part, {{"format", "pt"}}, control, convert);
    written.insert(name);
    begin = ends[s];
  }
  if (ends.size() > 1) {
    const std::string index = "model.safetensors.index.json";
    write_text_file(dir + "/" + index, "{\n  \"metadata\": {\"total_size\": " + std::to_string(total) +
                                           "},\n  \"weight_map\": {" + map + "\n  }\n}\n");
    written.insert(index);
  }
  remove_stale(dir, written);
}

void write_text_file(const std::string& path, const std::string& text) {
  write_atomically(path, [&](int fd) { write_all(fd, text.data(), text.size(), path); });
}

}  // namespace rapo
