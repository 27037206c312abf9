// A group of this process, rank 0, and the workers of inference servers, to which it broadcasts a policy's
// weights. The workers join when their servers are told to (lib/rollout/servers/broadcast.ts).
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "control.h"

namespace at {
class Tensor;
}

namespace rapo {

/// What a group exchanges its data through. All calls but abort() are made on the group's thread, and may
/// block there for ever.
class Transport {
 public:
  virtual ~Transport() = default;
  /// Returns when ranks 1 to size - 1 are there.
  virtual void join(std::int64_t size) = 0;
  /// Returns when all ranks have the bytes of tensor (contiguous, on the model's device).
  virtual void broadcast(at::Tensor& tensor) = 0;
  /// Makes a call that blocks fail, if the library can do that.
  virtual void abort() noexcept = 0;
};

/// NCCL, of the libnccl that libtorch has loaded, or of the file `library` if that is not empty. id: receives
/// the 128 bytes with which the other ranks find this one. warms_up: the other ranks add up one float32 as
/// soon as they have joined, as vLLM's workers do. Throws kDevice where there is no such library.
std::unique_ptr<Transport> open_nccl(const std::string& library, const std::string& device, bool warms_up,
                                     std::vector<std::uint8_t>& id);

/// Throws kDevice where open_nccl() would find no library.
void check_nccl(const std::string& library);

/// The store in which torch.distributed looks for the group `name` that a process has made by itself, as the
/// workers of SGLang do. On a free port of all interfaces.
class GroupStore {
 public:
  virtual ~GroupStore() = default;
  virtual std::int64_t port() const = 0;
  /// Puts NCCL's id where torch's own ProcessGroupNCCL looks for that of its first communicator.
  virtual void offer(const std::vector<std::uint8_t>& id) = 0;
  /// Gloo between CPUs. address: of this host, as the other ranks reach it.
  virtual std::unique_ptr<Transport> gloo(const std::string& address, std::int64_t timeout_ms) = 0;
  /// Throws kUnsupported without c10d.
  static std::shared_ptr<GroupStore> open(const std::string& name);
};

/// How long a call waits for the group's thread, and what ends it before.
struct Patience {
  std::chrono::steady_clock::time_point end;
  std::int64_t timeout_ms = 0;  // what the message says
  const Control& control;

  Patience(std::int64_t timeout, const Control& control)
      : end(std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout)),
        timeout_ms(timeout),
        control(control) {}
};

/// The exchange runs on a thread of the group's own, which shares with this object all that it uses: a call
/// that gives up leaves the thread behind, and neither the caller nor the end of the process waits for it.
/// Throws kDistributed; the message says what was being done. After that no further call is possible.
class BroadcastGroup {
 public:
  explicit BroadcastGroup(std::unique_ptr<Transport> transport);
  BroadcastGroup(const BroadcastGroup&) = delete;
  BroadcastGroup& operator=(const BroadcastGroup&) = delete;
  ~BroadcastGroup();

  /// Waits for ranks 1 to size - 1.
  void join(std::int64_t size, const Patience& patience);
  /// Hands the tensor over. Waits while another one is on its way and one more is waiting. The tensor must
  /// not change before flush() returns. what: its name in messages.
  void broadcast(const std::string& what, at::Tensor tensor, const Patience& patience);
  /// Waits until all tensors have arrived.
  void flush(const Patience& patience);

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace rapo
