#include "files/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <functional>
#include <regex>
#include <set>
#include <system_error>

#include "error.h"
#include "files/json.h"

namespace rapo {
namespace {

constexpr std::size_t kMaxHeader = 100'000'000;  // the reference implementation's limit
constexpr std::size_t kMaxIndex = 100'000'000;

[[noreturn]] void fail_format(const std::string& message) { throw Error(ErrorCode::kFormat, message); }

[[noreturn]] void fail_io(const std::string& what, const std::string& path) {
  throw Error(ErrorCode::kIo, what + " " + path + ": " + std::strerror(errno));
}

std::size_t width_of(const std::string& dtype) {
  static const std::map<std::string, std::size_t> widths = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"U16", 2}, {"I16", 2}, {"F16", 2},
      {"BF16", 2}, {"U32", 4}, {"I32", 4}, {"F32", 4},     {"U64", 8},     {"I64", 8}, {"F64", 8}};
  const auto found = widths.find(dtype);
  return found == widths.end() ? 0 : found->second;
}

/// A file descriptor that closes itself.
struct Descriptor {
  int fd = -1;
  ~Descriptor() {
    if (fd >= 0) ::close(fd);
  }
};

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
  // The rename itself survives a crash only once the directory is synced; some file systems refuse that:
  // harmless.
  Descriptor directory{::open(directory_of(path).c_str(), O_RDONLY | O_CLOEXEC)};
  if (directory.fd >= 0) (void)::fsync(directory.fd);
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::string& path) : path_(path) {
  Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (file.fd < 0) fail_io("cannot open", path);
  struct stat status {};
  if (::fstat(file.fd, &status) != 0) fail_io("cannot read", path);
  if (!S_ISREG(status.st_mode)) fail_format(path + ": not a regular file");
  size_ = static_cast<std::size_t>(status.st_size);
  if (size_ < 8)
    fail_format(path + ": " + std::to_string(size_) + " bytes are too few for a safetensors file");
  void* map = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.fd, 0);
  if (map == MAP_FAILED) fail_io("cannot map", path);
  map_ = static_cast<const std::byte*>(map);
  try {
    read_header();
  } catch (...) {
    ::munmap(map, size_);
    throw;
  }
}

SafetensorsFile::~SafetensorsFile() { ::munmap(const_cast<std::byte*>(map_), size_); }

void SafetensorsFile::read_header() {
  std::uint64_t length = 0;
  for (int i = 7; i >= 0; --i) length = (length << 8) | static_cast<std::uint64_t>(map_[i]);
  if (length > kMaxHeader || length > size_ - 8) {
    fail_format(path_ + ": the header claims " + std::to_string(length) + " bytes, the file has " +
                std::to_string(size_));
  }
  const auto* text = reinterpret_cast<const char*>(map_ + 8);
  if (length == 0 || text[0] != '{') fail_format(path_ + ": the header does not begin with '{'");
  const Json header = parse_json({text, static_cast<std::size_t>(length)}, path_ + " (header)");
  const std::byte* data = map_ + 8 + length;
  const std::uint64_t data_bytes = size_ - 8 - length;

  std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges;
  for (const auto& [name, entry] : header.members) {
    if (name == "__metadata__") {
      for (const auto& [key, value] : entry.members) {
        if (value.type != Json::Type::kString)
          fail_format(path_ + ": metadata \"" + key + "\" is not a string");
        metadata_[key] = value.text;
      }
      continue;
    }
    const std::string what = path_ + ": tensor \"" + name + "\"";
    const Json* dtype = entry.find("dtype");
    const Json* shape = entry.find("shape");
    const Json* offsets = entry.find("data_offsets");
    if (!dtype || dtype->type != Json::Type::kString || !shape || shape->type != Json::Type::kArray ||
        !offsets || offsets->type != Json::Type::kArray || offsets->items.size() != 2) {
      fail_format(what + " lacks a proper dtype, shape or data_offsets");
    }
    StoredTensor tensor;
    tensor.name = name;
    tensor.dtype = dtype->text;
    const std::size_t width = width_of(tensor.dtype);
    if (width == 0) fail_format(what + " has the unknown dtype \"" + tensor.dtype + "\"");
    std::uint64_t bytes = width;
    for (const Json& item : shape->items) {
      std::int64_t size = 0;
      if (!item.to_integer(&size) || size < 0) fail_format(what + " has a shape that is not made of sizes");
      if (__builtin_mul_overflow(bytes, static_cast<std::uint64_t>(size), &bytes)) {
        fail_format(what + " has a shape whose size overflows");
      }
      tensor.shape.push_back(size);
    }
    std::int64_t begin = 0, end = 0;
    if (!offsets->items[0].to_integer(&begin) || !offsets->items[1].to_integer(&end) || begin < 0 ||
        end < begin || static_cast<std::uint64_t>(end) > data_bytes) {
      fail_format(what + " has data_offsets outside the file's " + std::to_string(data_bytes) +
                  " data bytes (is the file cut off?)");
    }
    if (static_cast<std::uint64_t>(end - begin) != bytes) {
      fail_format(what + " has " + std::to_string(end - begin) + " bytes where its shape and dtype need " +
                  std::to_string(bytes));
    }
    tensor.data = data + begin;
    tensor.bytes = static_cast<std::size_t>(bytes);
    ranges.emplace_back(begin, end);
    tensors_.emplace(name, std::move(tensor));
  }
  std::sort(ranges.begin(), ranges.end());
  std::uint64_t covered = 0;
  for (const auto& [begin, end] : ranges) {
    if (begin < covered) fail_format(path_ + ": two tensors overlap at data byte " + std::to_string(begin));
    if (begin > covered) fail_format(path_ + ": a hole at data byte " + std::to_string(covered));
    covered = end;
  }
  if (covered != data_bytes) {
    fail_format(path_ + ": " + std::to_string(data_bytes - covered) + " bytes after the last tensor");
  }
}

Checkpoint::Checkpoint(const std::string& dir) {
  const std::string single = dir + "/model.safetensors";
  const std::string index_path = single + ".index.json";
  if (::access(single.c_str(), F_OK) == 0 || ::access(index_path.c_str(), F_OK) != 0) {
    path_ = single;
    files_.push_back(std::make_unique<SafetensorsFile>(single));
    tensors_ = files_[0]->tensors();
    for (const auto& [name, tensor] : tensors_) file_index_[name] = 0;
    return;
  }
  path_ = index_path;
  const Json index = parse_json(read_text_file(index_path, kMaxIndex), index_path);
  const Json* weight_map = index.find("weight_map");
  if (!weight_map || weight_map->type != Json::Type::kObject)
    fail_format(index_path + ": lacks a weight_map");
  std::map<std::string, std::size_t> shards;
  for (const auto& [name, shard] : weight_map->members) {
    if (shard.type != Json::Type::kString || shard.text.empty() ||
        shard.text.find('/') != std::string::npos) {
      fail_format(index_path + ": tensor \"" + name + "\" is not mapped to a file name");
    }
    const auto [found, is_new] = shards.emplace(shard.text, files_.size());
    if (is_new) files_.push_back(std::make_unique<SafetensorsFile>(dir + "/" + shard.text));
    const auto& content = files_[found->second]->tensors();
    const auto tensor = content.find(name);
    if (tensor == content.end()) {
      fail_format(index_path + ": tensor \"" + name + "\" is not in " + shard.text);
    }
    tensors_.insert(*tensor);
    file_index_[name] = found->second;
  }
  for (const auto& file : files_) {
    for (const auto& [name, tensor] : file->tensors()) {
      if (!tensors_.count(name)) fail_format(file->path() + ": tensor \"" + name + "\" is not in the index");
    }
  }
}

void Checkpoint::release(const StoredTensor& tensor) const {
  static const auto page = static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
  const auto address = reinterpret_cast<std::uintptr_t>(tensor.data);
  const auto begin = (address + page - 1) / page * page, end = (address + tensor.bytes) / page * page;
  auto* first = const_cast<std::byte*>(tensor.data) + (begin - address);
  if (begin < end) (void)::madvise(first, end - begin, MADV_DONTNEED);
}

const std::string& Checkpoint::file_of(const std::string& tensor) const {
  const auto found = file_index_.find(tensor);
  return found == file_index_.end() ? path_ : files_[found->second]->path();
}

namespace {

using Convert = std::function<std::shared_ptr<const void>(const StoredTensor&)>;

void write_file(const std::string& path, const std::vector<StoredTensor>& tensors,
                const std::map<std::string, std::string>& metadata, const Convert& convert) {
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
  header.resize((header.size() + 7) / 8 * 8, ' ');  // the data then begins at a multiple of 8
  unsigned char length[8];
  for (int i = 0; i < 8; ++i) length[i] = static_cast<unsigned char>(header.size() >> (8 * i));
  write_atomically(path, [&](int fd) {
    write_all(fd, length, sizeof length, path);
    write_all(fd, header.data(), header.size(), path);
    for (const StoredTensor& tensor : tensors) {
      const auto converted = convert ? convert(tensor) : nullptr;
      write_all(fd, converted ? converted.get() : tensor.data, tensor.bytes, path);
    }
  });
}

/// Whether transformers or we gave a model's file this name.
bool is_model_file(const std::string& name) {
  static const std::regex shard("model-\\d{5,}-of-\\d{5,}\\.safetensors");
  return name == "model.safetensors" || name == "model.safetensors.index.json" ||
         std::regex_match(name, shard);
}

/// Removes the files of an earlier model in dir, where others than those written had been.
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
                       const std::map<std::string, std::string>& metadata) {
  write_file(path, tensors, metadata, {});
}

void write_model(const std::string& dir, std::vector<StoredTensor> tensors, std::int64_t max_shard_bytes,
                 const std::string& dtype, const Convert& convert) {
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
    write_file(dir + "/" + name, part, {{"format", "pt"}}, convert);
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

std::string read_text_file(const std::string& path, std::size_t max_bytes) {
  Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (file.fd < 0) fail_io("cannot open", path);
  std::string text;
  char buffer[65536];
  for (;;) {
    const ssize_t n = ::read(file.fd, buffer, sizeof buffer);
    if (n < 0) {
      if (errno == EINTR) continue;
      fail_io("cannot read", path);
    }
    if (n == 0) return text;
    text.append(buffer, static_cast<std::size_t>(n));
    if (text.size() > max_bytes) fail_format(path + ": larger than " + std::to_string(max_bytes) + " bytes");
  }
}

}  // namespace rapo
