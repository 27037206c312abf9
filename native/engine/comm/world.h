// The processes ("ranks") that train together, and what they exchange. torch's c10d does the work: Gloo
// between CPUs, NCCL between GPUs. All ranks must make the same calls in the same order.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "control.h"

namespace at {
class Tensor;
}

namespace rapo {

/// Where a rank stands. lib/world/place.ts reads it from the environment that a launcher made.
struct WorldPlace {
  std::int64_t rank = 0, size = 1;
  std::string host;        // where the store is
  std::int64_t port = 0;   // of the store
  bool has_store = false;  // this rank must serve the store, since no launcher does
  std::string prefix;      // of the store's keys: another one for each attempt, since old keys may be there
  std::string interface;   // network interface for Gloo; empty: the one that has `address`
  std::string address;     // of this host, for Gloo; empty: Gloo chooses
  std::string device;      // where the model is: "cpu" or "cuda:N"
  std::int64_t timeout_ms = 0;  // the longest wait for another rank
};

/// A key-value store that ranks on other processes meet in, for a launcher. It ends with the object.
class StoreServer {
 public:
  virtual ~StoreServer() = default;
  virtual std::int64_t port() const = 0;
  /// On a free port of all interfaces. Throws kUnsupported without c10d.
  static std::shared_ptr<StoreServer> open();
};

/// An exchange that runs while this rank computes. wait() throws as the calls of World do. Its tensors must
/// not be touched before.
class Exchange {
 public:
  virtual ~Exchange() = default;
  virtual void wait(const Control& control) = 0;
};

/// A call that another rank does not answer throws kDistributed. The message says what was being exchanged,
/// and which rank failed or did not come. After that no further call is possible. `what` names the exchange,
/// such as "step 4, gradients".
class World {
 public:
  using Bytes = std::vector<std::uint8_t>;

  /// Whether libtorch has c10d and Gloo.
  static bool is_supported();
  /// Waits until all ranks have come. Throws kUnsupported without c10d.
  static std::shared_ptr<World> open(const WorldPlace& place, const Control& control);
  virtual ~World() = default;

  std::int64_t rank() const { return place_.rank; }
  std::int64_t size() const { return place_.size; }

  /// Every rank's bytes, in the order of the ranks.
  virtual std::vector<Bytes> gather(const std::string& what, const Bytes& own, const Control& control) = 0;
  /// flat (contiguous, float32, on the model's device) becomes the sum over the ranks, with the same bits on
  /// all of them.
  virtual void sum(const std::string& what, at::Tensor& flat, const Control& control) = 0;
  /// own (n, float32) becomes this rank's part of the sum of all (size x n) over the ranks; all is used up.
  virtual std::unique_ptr<Exchange> scatter_sum(const std::string& what, at::Tensor all, at::Tensor own,
                                                const Control& control) = 0;
  /// all (size x n) becomes the ranks' own (n), in the order of the ranks. Of any dtype.
  virtual std::unique_ptr<Exchange> gather_parts(const std::string& what, at::Tensor own, at::Tensor all,
                                                 const Control& control) = 0;
  /// Every rank's number, in the order of the ranks.
  std::vector<double> numbers(const std::string& what, double own, const Control& control);
  /// Tells the other ranks why this one ends: their errors will say so.
  virtual void report_failure(const std::string& message) = 0;
  /// Leaves. The other ranks' running exchanges fail.
  virtual void close() = 0;

 protected:
  explicit World(WorldPlace place);
  WorldPlace place_;
};

}  // namespace rapo
