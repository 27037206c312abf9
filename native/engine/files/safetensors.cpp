#include "files/safetensors.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <string_view>

#include "files/io.h"
#include "files/json.h"

namespace rapo {
namespace {

constexpr std::size_t kMaxHeader = 100'000'000;  // the reference implementation's limit
constexpr std::size_t kMaxIndex = 100'000'000;

/// A clone without Git LFS has a small text file in place of each large file.
void refuse_pointer(std::string_view text, const std::string& path) {
  constexpr std::string_view kBegin = "version https://git-lfs.github.com/spec/";
  if (text.substr(0, kBegin.size()) == kBegin)
    fail_format(path + " is a Git LFS pointer, not the file: git lfs pull");
}

/// Whether a file name of the index stays inside the model's directory.
bool stays_below(const std::string& name) {
  for (std::size_t begin = 0;;) {
    const std::size_t end = std::min(name.find('/', begin), name.size());
    const std::string part = name.substr(begin, end - begin);
    if (part.empty() || part == "." || part == ".." || part.find('\0') != std::string::npos) return false;
    if (end == name.size()) return true;
    begin = end + 1;
  }
}

}  // namespace

std::size_t width_of(const std::string& dtype) {
  static const std::map<std::string, std::size_t> widths = {
      {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"U16", 2}, {"I16", 2}, {"F16", 2},
      {"BF16", 2}, {"U32", 4}, {"I32", 4}, {"F32", 4},     {"U64", 8},     {"I64", 8}, {"F64", 8}};
  const auto found = widths.find(dtype);
  return found == widths.end() ? 0 : found->second;
}

SafetensorsFile::SafetensorsFile(const std::string& path) : path_(path) {
  Descriptor file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (file.fd < 0) fail_io("cannot open", path);
  struct stat status{};
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
  refuse_pointer({reinterpret_cast<const char*>(map_), size_}, path_);
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
  const std::string text = read_text_file(index_path, kMaxIndex);
  refuse_pointer(text, index_path);
  const Json index = parse_json(text, index_path);
  const Json* weight_map = index.find("weight_map");
  if (!weight_map || weight_map->type != Json::Type::kObject)
    fail_format(index_path + ": lacks a weight_map");
  std::map<std::string, std::size_t> shards;
  for (const auto& [name, shard] : weight_map->members) {
    if (shard.type != Json::Type::kString || !stays_below(shard.text)) {
      fail_format(index_path + ": tensor \"" + name + "\" is not mapped to a file of this directory");
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
