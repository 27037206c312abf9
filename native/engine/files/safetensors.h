// The safetensors format: the header's length in 8 bytes (little-endian), a JSON header, and the tensors'
// bytes without gaps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace rapo {

/// A tensor inside a mapped file, or one to be written. Row-major, little-endian.
struct StoredTensor {
  std::string name;
  std::string dtype;  // as the format spells it: F32, BF16, F16, I64 ...
  std::vector<std::int64_t> shape;
  const std::byte* data = nullptr;
  std::size_t bytes = 0;
};

/// Bytes of one element of a dtype as the format spells it; 0 for an unknown one.
std::size_t width_of(const std::string& dtype);

/// A read-only mapping of one file. Every offset, length and product in the header is checked against the
/// file before a tensor is handed out. A file that another process truncates later faults on access, as any
/// mapping does.
class SafetensorsFile {
 public:
  /// Throws Error: kIo (cannot be read), kFormat (names the file, and the tensor where there is one).
  explicit SafetensorsFile(const std::string& path);
  ~SafetensorsFile();
  SafetensorsFile(const SafetensorsFile&) = delete;
  SafetensorsFile& operator=(const SafetensorsFile&) = delete;

  const std::string& path() const { return path_; }
  const std::map<std::string, StoredTensor>& tensors() const { return tensors_; }
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  void read_header();

  std::string path_;
  const std::byte* map_ = nullptr;
  std::size_t size_ = 0;
  std::map<std::string, StoredTensor> tensors_;
  std::map<std::string, std::string> metadata_;
};

/// A model's tensors in one file (model.safetensors) or in shards (model.safetensors.index.json).
class Checkpoint {
 public:
  Checkpoint() = default;
  explicit Checkpoint(const std::string& dir);

  const std::map<std::string, StoredTensor>& tensors() const { return tensors_; }
  /// The file a tensor lies in.
  const std::string& file_of(const std::string& tensor) const;
  /// Lets the system free the tensor's pages. The file is read again where the tensor is.
  void release(const StoredTensor& tensor) const;

 private:
  std::string path_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, StoredTensor> tensors_;
  std::map<std::string, std::size_t> file_index_;
};

/// The whole of a small text file. Throws Error(kIo), and kFormat beyond max_bytes.
std::string read_text_file(const std::string& path, std::size_t max_bytes);

}  // namespace rapo
