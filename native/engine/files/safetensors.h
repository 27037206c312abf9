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

/// Bytes of one element of a dtype in the format's spelling; 0 for an unknown dtype.
std::size_t width_of(const std::string& dtype);

/// A read-only mapping of one file. Every offset, length and product in the header is checked against the
/// file's size before a tensor is handed out. As with any mapping, an access faults if another process
/// truncates the file later.
class SafetensorsFile {
 public:
  /// Throws Error: kIo (the file cannot be read), kFormat (names the file and, if there is one, the tensor).
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
  /// The file that holds the tensor.
  const std::string& file_of(const std::string& tensor) const;
  /// Lets the system free the memory of the tensor's pages. A later access reads them from the file again.
  void release(const StoredTensor& tensor) const;

 private:
  std::string path_;
  std::vector<std::unique_ptr<SafetensorsFile>> files_;
  std::map<std::string, StoredTensor> tensors_;
  std::map<std::string, std::size_t> file_index_;
};

/// The content of a small text file. Throws Error: kIo, or kFormat for a file larger than max_bytes.
std::string read_text_file(const std::string& path, std::size_t max_bytes);

}  // namespace rapo
