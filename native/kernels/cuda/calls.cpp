#include "calls.h"

#include <algorithm>
#include <cmath>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "../dtypes.h"
#include "../penalty.h"
#include "../row_vectors.h"
#include "../rows.h"
#include "../sequence.h"
#include "../token.h"
#include "../validate.h"
#include "checks.h"
#include "open.h"

namespace rapo::cuda {
namespace {

/// Memory of a device, freed at the end of its scope.
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Functions& functions, int device, std::size_t bytes)
      : functions_(&functions), device_(device) {
    if (bytes > 0) check(functions, functions.allocate(device, bytes, &data_), "allocating on the device");
    bytes_ = bytes;
  }
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    swap(other);
    return *this;
  }
  ~Buffer() {
    if (data_) functions_->release(device_, data_);
  }

  template <class T = void>
  T* get() const {
    return static_cast<T*>(data_);
  }
  std::size_t bytes() const { return bytes_; }
  int device() const { return device_; }

 private:
  void swap(Buffer& other) noexcept {
    std::swap(functions_, other.functions_);
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
  }

  const Functions* functions_ = nullptr;
  int device_ = 0;
  void* data_ = nullptr;
  std::size_t bytes_ = 0;
};

/// A device and a stream on it. Copies memory between host and device.
class Device {
 public:
  Device(int device, void* stream) : functions_(functions_for(device)), device_(device), stream_(stream) {}

  const Functions& functions() const { return functions_; }
  int index() const { return device_; }
  void* stream() const { return stream_; }

  Buffer allocate(std::size_t bytes) const { return Buffer(functions_, device_, bytes); }
  void to_device(void* to, const void* from, std::size_t bytes) const {
    if (bytes)
      check(functions_, functions_.upload(device_, to, from, bytes, stream_), "copying to the device");
  }
  void to_host(void* to, const void* from, std::size_t bytes) const {
    if (bytes)
      check(functions_, functions_.download(device_, to, from, bytes, stream_), "copying from the device");
  }
  std::size_t free_bytes() const {
    std::size_t free = 0, total = 0;
    check(functions_, functions_.memory_info(device_, &free, &total), "asking for the device's memory");
    return free;
  }

  /// Copies the elements of a device array to the host.
  template <class T>
  std::vector<T> fetch(const T* from, std::int64_t count) const {
    std::vector<T> values(static_cast<std::size_t>(from ? count : 0));
    if (from) to_host(values.data(), from, values.size() * sizeof(T));
    return values;
  }

 private:
  const Functions& functions_;
  int device_;
  void* stream_;
};

/// A copy on the device of a host array; null if the array is null.
template <class T>
class Mirror {
 public:
  Mirror(const Device& device, const T* host, std::int64_t count)
      : buffer_(device.allocate(host ? static_cast<std::size_t>(count) * sizeof(T) : 0)) {
    if (host) device.to_device(buffer_.get(), host, buffer_.bytes());
  }
  const T* get() const { return buffer_.get<const T>(); }

 private:
  Buffer buffer_;
};

/// Device memory for the results that a host array is to receive; null if the array is null.
template <class T>
class Result {
 public:
  Result(const Device& device, T* host, std::int64_t count)
      : host_(host), buffer_(device.allocate(host ? static_cast<std::size_t>(count) * sizeof(T) : 0)) {}
  T* get() const { return buffer_.get<T>(); }
  void fetch(const Device& device) const {
    if (host_) device.to_host(host_, buffer_.get(), buffer_.bytes());
  }

 private:
  T* host_;
  Buffer buffer_;
};

std::size_t row_bytes(std::int64_t vocab_size, DType dtype) {
  return static_cast<std::size_t>(vocab_size) * dtype_size(dtype);
}

/// Copies rows [first, first + count) of a host matrix to a device matrix without gaps, and back.
void rows_to_device(const Device& device, void* to, const void* from, DType dtype, std::int64_t stride,
                    std::int64_t vocab_size, std::int64_t first, std::int64_t count) {
  const std::size_t bytes = row_bytes(vocab_size, dtype);
  if (stride == vocab_size) {
    device.to_device(to, row_of(from, dtype, stride, first), bytes * static_cast<std::size_t>(count));
    return;
  }
  for (std::int64_t i = 0; i < count; ++i) {
    device.to_device(row_of(to, dtype, vocab_size, i), row_of(from, dtype, stride, first + i), bytes);
  }
}

void rows_to_host(const Device& device, void* to, const void* from, DType dtype, std::int64_t stride,
                  std::int64_t vocab_size, std::int64_t first, std::int64_t count) {
  const std::size_t bytes = row_bytes(vocab_size, dtype);
  if (stride == vocab_size) {
    device.to_host(row_of(to, dtype, stride, first), from, bytes * static_cast<std::size_t>(count));
    return;
  }
  for (std::int64_t i = 0; i < count; ++i) {
    device.to_host(row_of(to, dtype, stride, first + i), row_of(from, dtype, vocab_size, i), bytes);
  }
}

/// The number of rows that are processed at once. Their matrices, bytes_a_row for each row, take at most 256
/// MiB and at most a quarter of the free memory.
std::int64_t rows_at_once(const Device& device, std::int64_t rows, std::size_t bytes_a_row) {
  const std::size_t budget = std::min<std::size_t>(std::size_t{256} << 20, device.free_bytes() / 4);
  return std::clamp<std::int64_t>(static_cast<std::int64_t>(budget / std::max<std::size_t>(1, bytes_a_row)),
                                  1, std::max<std::int64_t>(1, rows));
}

std::int64_t row_in(std::uint64_t fault) { return static_cast<std::int64_t>(fault >> 8); }
int kind_in(std::uint64_t fault) { return static_cast<int>(fault & 0xff); }

/// Throws kNonFinite for the fault of one row. Its logits and reference logits are on the host.
[[noreturn]] void throw_data_fault(DataFault fault, std::int64_t name, Penalty penalty, const void* logits,
                                   const void* ref_logits, DType dtype, std::int64_t vocab_size) {
  switch (fault) {
    case DataFault::kLogits:
      throw_bad_logits("logits", name, logits, dtype, vocab_size);
    case DataFault::kRefLogits:
      throw_bad_logits("refLogits", name, ref_logits, dtype, vocab_size);
    case DataFault::kRuledOut:
      throw_token_fault(TokenFault::kRuledOut, penalty, name);
    default:
      throw_token_fault(TokenFault::kInfinitePenalty, penalty, name);
  }
}

/// Copies one row of a device matrix to the host.
std::vector<char> fetch_row(const Device& device, const void* matrix, DType dtype, std::int64_t stride,
                            std::int64_t vocab_size, std::int64_t row) {
  std::vector<char> data(matrix ? row_bytes(vocab_size, dtype) : 0);
  if (matrix) device.to_host(data.data(), row_of(matrix, dtype, stride, row), data.size());
  return data;
}

/// Copies the row arrays of `count` rows from `first` on to the host.
RowVectors fetch_rows(const Device& device, const Batch& batch, std::int64_t first, std::int64_t count) {
  const Batch from = rows_from(batch, first, count);
  RowVectors rows;
#define RAPO_FETCH(name, ...) rows.name = device.fetch(from.name, count);
  RAPO_ROW_ARRAYS(RAPO_FETCH)
#undef RAPO_FETCH
  return rows;
}

/// Throws the error for an invalid entry, with the message that a call on the host would have.
[[noreturn]] void explain_invalid(const Device& device, const Batch& b, const Objective& objective,
                                  std::uint64_t fault) {
  if (kind_in(fault) < kFaultSequence) {
    const std::int64_t i = row_in(fault);
    Batch row = b;
    const RowVectors entries = fetch_rows(device, b, i, 1);
    entries.attach(row);
    throw_row_fault(static_cast<RowFault>(kind_in(fault)), row, objective, 0, b.name_of(i));
  }
  const RowVectors entries = fetch_rows(device, b, 0, b.rows);
  const auto offsets = device.fetch(b.sequence_offsets, b.sequences + 1);
  Batch host = b;
  entries.attach(host);
  host.old_logprobs = nullptr;
  host.sequence_offsets = offsets.data();
  sequence_log_ratios(host, {});
  throw Error(ErrorCode::kInvalidArgument, "sequenceOffsets changed while the call ran");
}

// Workspaces and reports are kept for later calls, since allocating waits for the device.
std::mutex pool_mutex;

std::vector<Buffer>& pool() {
  static auto* const buffers = new std::vector<Buffer>;  // never freed, since the driver may be gone at exit
  return *buffers;
}

class Workspace {
 public:
  Workspace(const Device& device, std::size_t bytes) {
    {
      const std::lock_guard<std::mutex> lock(pool_mutex);
      const auto fits = [&](const Buffer& b) { return b.device() == device.index() && b.bytes() >= bytes; };
      const auto found = std::find_if(pool().begin(), pool().end(), fits);
      if (found != pool().end()) {
        buffer_ = std::move(*found);
        pool().erase(found);
        return;
      }
    }
    buffer_ = device.allocate(bytes);
  }
  Workspace(const Workspace&) = delete;
  ~Workspace() {
    const std::lock_guard<std::mutex> lock(pool_mutex);
    // One per device is enough, since calls rarely overlap.
    const auto same = [&](const Buffer& b) { return b.device() == buffer_.device(); };
    const auto kept = std::find_if(pool().begin(), pool().end(), same);
    if (kept == pool().end()) {
      pool().push_back(std::move(buffer_));
    } else if (kept->bytes() < buffer_.bytes()) {
      std::swap(*kept, buffer_);
    }
  }
  char* get() const { return buffer_.get<char>(); }

 private:
  Buffer buffer_;
};

constexpr std::size_t kReportBytes = 256;
static_assert(sizeof(Report) <= kReportBytes, "layout");

/// Runs a call whose arrays are on the device and waits for the result.
Report run_loss(const Device& device, const Batch& batch, const Objective& objective,
                const Outputs& outputs) {
  const auto& f = device.functions();
  const Workspace workspace(device, kReportBytes + f.loss_workspace(batch.rows));
  auto* report = reinterpret_cast<Report*>(workspace.get());
  check(f,
        f.policy_loss(device.index(), &batch, &objective, &outputs, workspace.get() + kReportBytes, report,
                      device.stream()),
        "the loss on the device");
  Report result;
  device.to_host(&result, report, sizeof result);
  return result;
}

Report run_gather(const Device& device, const LogitRows& logits, const std::int32_t* token_ids,
                  double temperature, const GatherOutputs& outputs) {
  const auto& f = device.functions();
  const Workspace workspace(device, kReportBytes);
  auto* report = reinterpret_cast<Report*>(workspace.get());
  check(f,
        f.gather_logprobs(device.index(), &logits, token_ids, temperature, &outputs, report, device.stream()),
        "log-probs on the device");
  Report result;
  device.to_host(&result, report, sizeof result);
  return result;
}

template <class T>
T* advance(T* array, std::int64_t rows) {
  return array ? array + rows : nullptr;
}

std::size_t head_bytes(const Device& device, const FusedHead& head, std::int64_t chunk_rows) {
  return kReportBytes + device.functions().fused_head_workspace(&head, chunk_rows);
}

/// Number of rows in a chunk: as many as `bytes` hold, but at most kMostChunkRows, beyond which the products
/// do not get faster. Chunks are then made as equal as multiples of 128 rows allow.
std::int64_t chunk_rows_for(const Device& device, const FusedHead& head, std::size_t bytes) {
  constexpr std::int64_t kMostChunkRows = 4096, kTile = 128;
  const auto up = [](std::int64_t rows) { return (rows + kTile - 1) / kTile * kTile; };
  const std::int64_t n = std::max<std::int64_t>(1, head.batch.rows);
  std::int64_t most = std::min(kMostChunkRows, n);
  while (most > 1 && head_bytes(device, head, most) > bytes) {
    most = most > kTile ? up(most) - kTile : most / 2;
  }
  const std::int64_t chunks = (n + most - 1) / most, even = (n + chunks - 1) / chunks;
  return std::min(most, up(even));
}

/// Throws kNonFinite for a row of the head. The row's logits no longer exist, so the message looks for the
/// cause in the row of hidden.
[[noreturn]] void throw_head_fault(const Device& device, const FusedHead& head, Penalty penalty,
                                   std::uint64_t word) {
  const std::int64_t i = row_in(word);
  const auto fault = static_cast<DataFault>(kind_in(word));
  const bool policy = fault == DataFault::kLogits;
  if (!policy && fault != DataFault::kRefLogits) {
    throw_data_fault(fault, i, penalty, nullptr, nullptr, head.batch.dtype, head.batch.vocab_size);
  }
  const std::string row = std::to_string(i);
  const std::string hidden = policy ? "hidden" : "refHidden", weight = policy ? "weight" : "refWeight";
  std::string cause;
  // If the gradient takes the place of hidden, the row is overwritten.
  if (!policy || head.grad_hidden != head.hidden) {
    const std::int64_t channels = policy ? head.channels : head.ref_channels;
    const auto data = fetch_row(device, policy ? head.hidden : head.ref_hidden, head.batch.dtype,
                                policy ? head.hidden_stride : head.ref_hidden_stride, channels, i);
    for (std::int64_t c = 0; cause.empty() && c < channels; ++c) {
      const double x = load_scalar(data.data(), head.batch.dtype, c);
      if (!std::isfinite(x)) {
        cause = ": " + hidden + "[" + row + ", " + std::to_string(c) + "] is " +
                (std::isnan(x) ? "NaN"
                 : x > 0       ? "+inf"
                               : "-inf");
      }
    }
  }
  throw Error(ErrorCode::kNonFinite, "row " + row + ": the logits of " + hidden + "[" + row + "] and " +
                                         weight + " have NaN or +inf among them, or are all -inf" + cause);
}

}  // namespace

Metrics policy_loss_of_device_arrays(int device_index, void* stream, const Batch& batch,
                                     const Objective& objective, const Outputs& outputs) {
  const Device device(device_index, stream);
  validate_loss_shape(batch, objective, outputs, false);
  check_overlaps(extents_of(batch, outputs));
  check_sequences(batch);
  const Report report = run_loss(device, batch, objective, outputs);
  if (report.status.invalid < kStopped) explain_invalid(device, batch, objective, report.status.invalid);
  if (report.status.non_finite != kNoFault) {
    const std::int64_t i = row_in(report.status.non_finite);
    const auto logits =
        fetch_row(device, batch.logits, batch.dtype, batch.logits_stride, batch.vocab_size, i);
    const auto ref = fetch_row(device, batch.ref_logits, batch.dtype, batch.ref_stride, batch.vocab_size, i);
    throw_data_fault(static_cast<DataFault>(kind_in(report.status.non_finite)), batch.name_of(i),
                     objective.penalty, logits.data(), ref.data(), batch.dtype, batch.vocab_size);
  }
  return report.metrics;
}

Metrics policy_loss_of_host_arrays(int device_index, const Batch& host, const Objective& objective,
                                   const Outputs& wanted, const Control* control) {
  const Device device(device_index, nullptr);
  validate_loss(host, objective, wanted, false);
  if (host.sequence_offsets) {
    Batch on_host = host;
    on_host.old_logprobs = nullptr;
    sequence_log_ratios(on_host, {});  // called for its checks
  }
  const std::int64_t n = host.rows, v = host.vocab_size;
#define RAPO_MIRROR(name, type, ...) const Mirror<type> mirror_##name(device, host.name, n);
  RAPO_ROW_ARRAYS(RAPO_MIRROR)
#undef RAPO_MIRROR
  const Mirror<std::int32_t> offsets(device, host.sequence_offsets, host.sequences + 1);
  const Mirror<double> ratios(device, host.sequence_log_ratios, n);
#define RAPO_RESULT(name, type, js) const Result<type> result_##name(device, wanted.name, n);
  RAPO_ROW_OUTPUTS(RAPO_RESULT)
#undef RAPO_RESULT

  const std::size_t in = row_bytes(v, host.dtype);
  // A gradient of the same dtype as the logits is written over the device's copy of the logits.
  const bool own_gradient = wanted.grad_logits && wanted.grad_dtype != host.dtype;
  const std::size_t out = own_gradient ? row_bytes(v, wanted.grad_dtype) : 0;
  const std::int64_t part =
      host.sequence_offsets ? n : rows_at_once(device, n, in + (host.ref_logits ? in : 0) + out);
  const Buffer logits = device.allocate(in * static_cast<std::size_t>(part));
  const Buffer ref = device.allocate(host.ref_logits ? in * static_cast<std::size_t>(part) : 0);
  const Buffer grad = device.allocate(out * static_cast<std::size_t>(part));

  Batch entries = host;
#define RAPO_MIRRORED(name, ...) entries.name = mirror_##name.get();
  RAPO_ROW_ARRAYS(RAPO_MIRRORED)
#undef RAPO_MIRRORED
  entries.sequence_offsets = offsets.get();
  entries.sequence_log_ratios = ratios.get();
  Outputs results;
#define RAPO_WRITTEN(name, ...) results.name = result_##name.get();
  RAPO_ROW_OUTPUTS(RAPO_WRITTEN)
#undef RAPO_WRITTEN
  Metrics metrics;
  for (std::int64_t first = 0; first < n; first += part) {
    if (control) control->check();
    const std::int64_t count = std::min(part, n - first);
    Batch b = rows_from(entries, first, count);
    b.logits = logits.get();
    b.ref_logits = host.ref_logits ? ref.get() : nullptr;
    b.logits_stride = b.ref_stride = v;
    Outputs o = rows_from(results, first);
    o.grad_logits = !wanted.grad_logits ? nullptr : own_gradient ? grad.get() : logits.get();
    o.grad_dtype = wanted.grad_dtype;
    o.grad_stride = v;
    rows_to_device(device, logits.get(), host.logits, host.dtype, host.logits_stride, v, first, count);
    if (host.ref_logits) {
      rows_to_device(device, ref.get(), host.ref_logits, host.dtype, host.ref_stride, v, first, count);
    }
    const Report report = run_loss(device, b, objective, o);
    if (report.status.non_finite != kNoFault) {
      const std::int64_t i = first + row_in(report.status.non_finite);
      throw_data_fault(static_cast<DataFault>(kind_in(report.status.non_finite)), i, objective.penalty,
                       row_of(host.logits, host.dtype, host.logits_stride, i),
                       host.ref_logits ? row_of(host.ref_logits, host.dtype, host.ref_stride, i) : nullptr,
                       host.dtype, v);
    }
    if (wanted.grad_logits) {
      rows_to_host(device, wanted.grad_logits, o.grad_logits, wanted.grad_dtype, wanted.grad_stride, v, first,
                   count);
    }
    metrics.add(report.metrics);
  }
#define RAPO_FETCH(name, ...) result_##name.fetch(device);
  RAPO_ROW_OUTPUTS(RAPO_FETCH)
#undef RAPO_FETCH
  return metrics;
}

void gather_logprobs_of_device_arrays(int device_index, void* stream, const LogitRows& logits,
                                      const std::int32_t* token_ids, double temperature,
                                      const GatherOutputs& outputs) {
  const Device device(device_index, stream);
  validate_gather_shape(logits, token_ids, temperature, outputs, false);
  check_overlaps(extents_of(logits, token_ids, outputs));
  const Report report = run_gather(device, logits, token_ids, temperature, outputs);
  if (report.status.invalid != kNoFault) {
    const std::int64_t i = row_in(report.status.invalid);
    throw_token_id(device.fetch(token_ids + i, 1)[0], logits.name_of(i), logits.vocab_size);
  }
  if (report.status.non_finite != kNoFault) {
    const std::int64_t i = row_in(report.status.non_finite);
    const auto row = fetch_row(device, logits.data, logits.dtype, logits.stride, logits.vocab_size, i);
    throw_bad_logits("logits", logits.name_of(i), row.data(), logits.dtype, logits.vocab_size);
  }
}

void gather_logprobs_of_host_arrays(int device_index, const LogitRows& host, const std::int32_t* token_ids,
                                    double temperature, const GatherOutputs& wanted, const Control* control) {
  const Device device(device_index, nullptr);
  validate_gather(host, token_ids, temperature, wanted, false);
  const std::int64_t n = host.rows, v = host.vocab_size;
  const Mirror<std::int32_t> ids(device, wanted.logprobs ? token_ids : nullptr, n);
  const Result<float> logprobs(device, wanted.logprobs, n), entropy(device, wanted.entropy, n),
      log_sum_exp(device, wanted.log_sum_exp, n);
  const std::size_t bytes = row_bytes(v, host.dtype);
  const std::int64_t part = rows_at_once(device, n, bytes);
  const Buffer logits = device.allocate(bytes * static_cast<std::size_t>(part));
  for (std::int64_t first = 0; first < n; first += part) {
    if (control) control->check();
    const std::int64_t count = std::min(part, n - first);
    rows_to_device(device, logits.get(), host.data, host.dtype, host.stride, v, first, count);
    const LogitRows rows{count, v, host.dtype, logits.get(), v};
    const GatherOutputs outputs{advance(logprobs.get(), first), advance(entropy.get(), first),
                                advance(log_sum_exp.get(), first)};
    const Report report = run_gather(device, rows, advance(ids.get(), first), temperature, outputs);
    if (report.status.non_finite != kNoFault) {
      const std::int64_t i = first + row_in(report.status.non_finite);
      throw_bad_logits("logits", i, row_of(host.data, host.dtype, host.stride, i), host.dtype, v);
    }
  }
  for (const auto* result : {&logprobs, &entropy, &log_sum_exp}) result->fetch(device);
}

std::size_t fused_head_workspace_bytes(int device_index, const FusedHead& head, std::int64_t chunk_rows) {
  return head_bytes(Device(device_index, nullptr), head, chunk_rows);
}

Metrics fused_head_loss_of_device_arrays(int device_index, void* stream, const FusedHead& head,
                                         const Objective& objective, const Outputs& outputs,
                                         std::int64_t chunk_rows, const HeadWorkspace& given) {
  const Device device(device_index, stream);
  validate_head(head, objective, outputs);
  check_head_overlaps(head, outputs, given);
  if (chunk_rows < 0) invalid("chunkRows is " + std::to_string(chunk_rows) + ", expected at least 1");
  const auto& f = device.functions();
  check(f, f.fused_head_prepare(device.index()), "the fused head on the device");
  if (chunk_rows == 0) {
    chunk_rows = chunk_rows_for(device, head, given.data ? given.bytes : device.free_bytes() / 2);
  }
  chunk_rows = std::min(chunk_rows, std::max<std::int64_t>(1, head.batch.rows));
  const std::size_t bytes = head_bytes(device, head, chunk_rows);
  if (given.data && given.bytes < bytes) {
    invalid("workspace has " + std::to_string(given.bytes) + " bytes, expected at least " +
            std::to_string(bytes) + " for chunks of " + std::to_string(chunk_rows) + " rows");
  }
  if (reinterpret_cast<std::uintptr_t>(given.data) % 256 != 0) {
    invalid("workspace is not aligned to 256 bytes");
  }
  // A workspace allocated here is not kept for later calls: it takes a good part of the device's memory.
  const Buffer own = device.allocate(given.data ? 0 : bytes);
  char* const workspace = given.data ? static_cast<char*>(given.data) : own.get<char>();
  auto* report = reinterpret_cast<Report*>(workspace);
  Report result;
  const auto fetch = [&] { device.to_host(&result, report, sizeof result); };
  // The entries are checked before any product, since a product that was added to a gradient cannot be taken
  // back.
  check(f, f.check_batch(device.index(), &head.batch, &objective, report, stream), "the loss on the device");
  fetch();
  if (result.status.invalid < kStopped) explain_invalid(device, head.batch, objective, result.status.invalid);
  check(f,
        f.fused_head_loss(device.index(), &head, &objective, &outputs, chunk_rows, workspace + kReportBytes,
                          report, stream),
        "the fused head on the device");
  fetch();
  if (result.status.non_finite != kNoFault) {
    throw_head_fault(device, head, objective.penalty, result.status.non_finite);
  }
  return result.metrics;
}

}  // namespace rapo::cuda
