#include "comm/world.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <c10/util/Logging.h>

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#ifdef USE_C10D_NCCL
#include <c10/cuda/CUDAFunctions.h>

#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "comm/c10d.h"

namespace rapo {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

/// What a rank that waits does at these intervals: it looks whether the call is still wanted.
constexpr milliseconds kSlice{100};
/// A rank that has waited so long tells the store where it is. Whoever has not told it by the end of the
/// timeout is the one that all wait for.
constexpr milliseconds kPatience{500};
/// After a connection broke: the time in which the other ranks can say that they live, or why they ended.
constexpr milliseconds kAfterword{2000};
/// Gloo's time for a byte is least for tensors of this size; NCCL wants larger ones.
constexpr std::int64_t kGlooBucket = std::int64_t{1} << 20, kNcclBucket = std::int64_t{1} << 24;  // elements

std::string list_ranks(const std::vector<std::int64_t>& ranks) {
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  constexpr std::size_t kMost = 8;
  for (std::size_t i = 0; i < std::min(ranks.size(), kMost); ++i)
    text += (i == 0 ? "" : ", ") + std::to_string(ranks[i]);
  if (ranks.size() > kMost) text += " and " + std::to_string(ranks.size() - kMost) + " more";
  return text;
}

class TcpStoreServer final : public StoreServer {
 public:
  TcpStoreServer()
      : store_(
            c10::make_intrusive<c10d::TCPStore>("localhost", store_options(0, true, milliseconds(60'000)))) {}
  std::int64_t port() const override { return store_->getPort(); }

 private:
  c10::intrusive_ptr<c10d::TCPStore> store_;
};

class C10dWorld final : public World {
 public:
  C10dWorld(const WorldPlace& place, const Control& control)
      : World(place), timeout_(place.timeout_ms), device_(place.device) {
    quieten();
    open_store();
    meet(control);
    open_groups();
  }

  C10dWorld(const C10dWorld&) = delete;
  C10dWorld& operator=(const C10dWorld&) = delete;

  ~C10dWorld() override {
    try {
      close();
    } catch (...) {
    }
  }

  std::vector<Bytes> gather(const std::string& what, const Bytes& own, const Control& control) override {
    const Turn turn(*this, what, control);
    auto size = at::empty({1}, at::kLong);
    size.data_ptr<std::int64_t>()[0] = static_cast<std::int64_t>(own.size());
    auto sizes = at::empty({this->size()}, at::kLong);
    turn.finish(control, [&] { return gloo_->_allgather_base(sizes, size); });
    const auto* counts = sizes.data_ptr<std::int64_t>();
    const std::int64_t longest = *std::max_element(counts, counts + this->size());
    std::vector<Bytes> out(static_cast<std::size_t>(this->size()));
    if (longest == 0) return out;
    auto padded = at::empty({longest}, at::kByte);
    std::memcpy(padded.data_ptr(), own.data(), own.size());
    auto all = at::empty({longest * this->size()}, at::kByte);
    turn.finish(control, [&] { return gloo_->_allgather_base(all, padded); });
    const auto* bytes = all.data_ptr<std::uint8_t>();
    for (std::size_t r = 0; r < out.size(); ++r) {
      const std::uint8_t* begin = bytes + static_cast<std::int64_t>(r) * longest;
      out[r].assign(begin, begin + counts[r]);
    }
    return out;
  }

  void sum(const std::string& what, at::Tensor& flat, const Control& control) override {
    const Turn turn(*this, what, control);
    const bool on_cpu = flat.is_cpu();
    c10d::Backend& backend = on_cpu ? *gloo_ : *tensors_;
    const std::int64_t bucket = on_cpu ? kGlooBucket : kNcclBucket, count = flat.numel();
    const auto start = [&](std::int64_t begin) {
      std::vector<at::Tensor> part{flat.narrow(0, begin, std::min(bucket, count - begin))};
      return backend.allreduce(part);
    };
    // Two at a time: one is on the way while the other is added up.
    c10::intrusive_ptr<c10d::Work> running;
    for (std::int64_t begin = 0; begin < count; begin += bucket) {
      c10::intrusive_ptr<c10d::Work> next;
      turn.guard([&] { next = start(begin); });
      if (running) turn.wait(*running, control, on_cpu);
      running = std::move(next);
    }
    if (running) turn.wait(*running, control, on_cpu);
  }

  std::unique_ptr<Exchange> scatter_sum(const std::string& what, at::Tensor all, at::Tensor own,
                                        const Control& control) override {
    return std::make_unique<Running>(*this, what, control, own.is_cpu(), [&](c10d::Backend& backend) {
      return backend._reduce_scatter_base(own, all);
    });
  }

  std::unique_ptr<Exchange> gather_parts(const std::string& what, at::Tensor own, at::Tensor all,
                                         const Control& control) override {
    return std::make_unique<Running>(*this, what, control, own.is_cpu(), [&](c10d::Backend& backend) {
      return backend._allgather_base(all, own);
    });
  }

  void report_failure(const std::string& message) override {
    if (!store_) return;
    try {
      const auto order = store_->add("failures", 1);
      store_->set(key("failure", rank()), std::to_string(order) + " " + message);
    } catch (...) {  // the store is gone too
    }
  }

  void close() override {
    if (broken_) {
      // A running exchange still uses them, and their destructors would wait for it.
      for (auto* backend : {&gloo_, &tensors_}) static_cast<void>(backend->release());
    }
    tensors_.reset();
    gloo_.reset();
    store_.reset();
  }

 private:
  /// One exchange: its name for errors, and its number among all exchanges, which is the same on every rank.
  class Turn {
   public:
    Turn(C10dWorld& world, std::string what, const Control& control)
        : world_(world), what_(std::move(what)), number_(++world.turns_) {
      control.check();
      if (!world.gloo_ || world.broken_) {
        throw Error(ErrorCode::kDistributed, what_ + ": this rank has left the others already");
      }
    }

    template <class F>
    void guard(const F& body) const {
      try {
        body();
      } catch (const Error&) {
        throw;
      } catch (const std::exception& error) {
        world_.fail(what_, number_, text_of(error));
      }
    }

    template <class F>
    void finish(const Control& control, const F& start) const {
      c10::intrusive_ptr<c10d::Work> work;
      guard([&] { work = start(); });
      wait(*work, control);
    }

    void wait(c10d::Work& work, const Control& control, bool on_cpu = true) const {
      if (!on_cpu) {
        guard([&] { work.wait(); });  // only the current stream waits; NCCL's watchdog has the timeout
        return;
      }
      const auto begin = Clock::now();
      bool is_told = false;
      for (;;) {
        try {
          work.wait(kSlice);
          return;
        } catch (const std::exception& error) {
          if (work.isCompleted()) {
            if (work.isSuccess()) return;  // just now
            world_.fail(what_, number_, text_of(error));
          }
        }
        try {
          control.check();
        } catch (...) {
          world_.broken_ = true;
          throw;
        }
        if (!is_told && Clock::now() - begin > kPatience) {
          is_told = true;
          world_.tell(number_, what_);
        }
      }
    }

   private:
    C10dWorld& world_;
    std::string what_;
    std::int64_t number_;
  };

  class Running final : public Exchange {
   public:
    template <class F>
    Running(C10dWorld& world, const std::string& what, const Control& control, bool on_cpu, const F& start)
        : turn_(world, what, control), on_cpu_(on_cpu) {
      turn_.guard([&] { work_ = start(on_cpu ? *world.gloo_ : *world.tensors_); });
    }
    void wait(const Control& control) override { turn_.wait(*work_, control, on_cpu_); }

   private:
    Turn turn_;
    bool on_cpu_;
    c10::intrusive_ptr<c10d::Work> work_;
  };

  static std::string key(const char* name, std::int64_t rank) {
    return std::string(name) + "/" + std::to_string(rank);
  }

  /// c10d writes the stack of every error to stderr before it throws. The errors say enough here.
  static void quieten() {
    constexpr int kFatal = 3;
    if (std::getenv("TORCH_CPP_LOG_LEVEL") == nullptr) FLAGS_caffe2_log_level = kFatal;
  }

  void open_store() {
    const std::string where = place_.host + ":" + std::to_string(place_.port);
    try {
      auto tcp = c10::make_intrusive<c10d::TCPStore>(place_.host,
                                                     store_options(place_.port, place_.has_store, timeout_));
      store_ = c10::make_intrusive<c10d::PrefixStore>(place_.prefix, std::move(tcp));
    } catch (const std::exception& error) {
      throw Error(ErrorCode::kDistributed,
                  std::string(place_.has_store ? "cannot open the store of the run at "
                                               : "cannot reach the store of the run at ") +
                      where + ": " + text_of(error));
    }
  }

  /// Waits until every rank is there.
  void meet(const Control& control) {
    try {
      store_->set(key("here", rank()), "1");
      const auto end = Clock::now() + timeout_;
      std::vector<std::string> all;
      all.reserve(static_cast<std::size_t>(size()));
      for (std::int64_t r = 0; r < size(); ++r) all.push_back(key("here", r));
      while (!store_->check(all)) {
        control.check();
        if (Clock::now() > end) {
          std::vector<std::int64_t> missing;
          for (std::int64_t r = 0; r < size(); ++r)
            if (!store_->check({key("here", r)})) missing.push_back(r);
          throw Error(ErrorCode::kDistributed, list_ranks(missing) + " of " + std::to_string(size()) +
                                                   " did not come within " + seconds(timeout_) +
                                                   " (distributed.timeoutSeconds)");
        }
        std::this_thread::sleep_for(milliseconds(20));
      }
    } catch (const Error&) {
      throw;
    } catch (const std::exception& error) {
      throw Error(ErrorCode::kDistributed, "the store of the run is gone: " + text_of(error));
    }
  }

  void open_groups() {
    const int rank = static_cast<int>(place_.rank), size = static_cast<int>(place_.size);
    try {
      auto options = c10d::ProcessGroupGloo::Options::create(timeout_);
      using Gloo = c10d::ProcessGroupGloo;
      options->devices.push_back(!place_.interface.empty() ? Gloo::createDeviceForInterface(place_.interface)
                                 : !place_.address.empty() ? Gloo::createDeviceForHostname(place_.address)
                                                           : Gloo::createDefaultDevice());
      options->threads = 2;
      gloo_ = c10::make_intrusive<Gloo>(c10::make_intrusive<c10d::PrefixStore>("gloo", store_), rank, size,
                                        options);
      if (device_.is_cpu()) return;
#ifdef USE_C10D_NCCL
      c10::cuda::set_device(device_.index());
      auto nccl = c10d::ProcessGroupNCCL::Options::create();
      nccl->timeout = timeout_;
      tensors_ = c10::make_intrusive<c10d::ProcessGroupNCCL>(
          c10::make_intrusive<c10d::PrefixStore>("nccl", store_), rank, size, nccl);
#else
      throw Error(ErrorCode::kUnsupported,
                  "several processes cannot train on GPUs: the libtorch that the engine was compiled against "
                  "has no NCCL");
#endif
    } catch (const Error&) {
      throw;
    } catch (const std::exception& error) {
      fail("connecting the ranks", 0, text_of(error));
    }
  }

  static std::string seconds(milliseconds time) { return std::to_string((time.count() + 500) / 1000) + " s"; }

  /// Notes in the store that this rank waits in an exchange, or that it is alive after a failure.
  void tell(std::int64_t number, const std::string& what) {
    try {
      store_->set(key("at", rank()), std::to_string(number) + " " + what);
    } catch (...) {  // that the store is gone is found out when the exchange fails
    }
  }

  /// Throws kDistributed with the best explanation that the store has.
  [[noreturn]] void fail(const std::string& what, std::int64_t number, const std::string& why) {
    broken_ = true;
    const bool is_late = why.find("imed out") != std::string::npos;
    tell(number, what);
    std::string cause;
    try {
      cause = explain(number, is_late);
    } catch (const std::exception&) {
      cause = place_.has_store
                  ? ""
                  : "the process that holds the store of the run, usually that of rank 0, is gone";
    }
    if (cause.empty()) cause = is_late ? "no answer within " + seconds(timeout_) : "the connection broke";
    const std::string message = what + ": " + cause + " (" + why + ")";
    report_failure(message);
    throw Error(ErrorCode::kDistributed, message);
  }

  std::string explain(std::int64_t number, bool is_late) {
    const auto end = Clock::now() + kAfterword;
    for (;;) {
      std::vector<std::int64_t> silent;
      std::int64_t first = 0;
      std::string failure;
      for (std::int64_t r = 0; r < size(); ++r) {
        if (r == rank()) continue;
        if (store_->check({key("failure", r)})) {
          const std::string text = store_->get_to_str(key("failure", r));
          const std::int64_t order = std::stoll(text);
          if (first == 0 || order < first) {
            first = order;
            failure = list_ranks({r}) + " failed: " + text.substr(text.find(' ') + 1);
          }
        } else if (!store_->check({key("at", r)}) || std::stoll(store_->get_to_str(key("at", r))) < number) {
          silent.push_back(r);
        }
      }
      if (is_late && !silent.empty()) {
        return list_ranks(silent) + " did not come within " + seconds(timeout_) +
               " (distributed.timeoutSeconds)";
      }
      // The first failure is the root of the others.
      if (first != 0) return failure;
      const bool is_over = Clock::now() > end;
      if (is_over && !silent.empty()) {
        return list_ranks(silent) + " ended without a message: killed, or out of reach";
      }
      if (is_over) return "";
      std::this_thread::sleep_for(milliseconds(100));
    }
  }

  milliseconds timeout_;
  at::Device device_;
  bool broken_ = false;
  std::int64_t turns_ = 0;
  c10::intrusive_ptr<c10d::Store> store_;
  c10::intrusive_ptr<c10d::Backend> gloo_, tensors_;  // on the CPU; on the model's device, if that is a GPU
};

}  // namespace

World::World(WorldPlace place) : place_(std::move(place)) {}

std::vector<double> World::numbers(const std::string& what, double own, const Control& control) {
  Bytes bytes(sizeof own);
  std::memcpy(bytes.data(), &own, sizeof own);
  std::vector<double> out;
  for (const Bytes& part : gather(what, bytes, control)) {
    if (part.size() != sizeof own) throw Error(ErrorCode::kDistributed, what + ": a rank did something else");
    std::memcpy(&out.emplace_back(), part.data(), sizeof own);
  }
  return out;
}

bool World::is_supported() { return true; }

std::shared_ptr<World> World::open(const WorldPlace& place, const Control& control) {
  return std::make_shared<C10dWorld>(place, control);
}

std::shared_ptr<StoreServer> StoreServer::open() {
  try {
    return std::make_shared<TcpStoreServer>();
  } catch (const std::exception& error) {
    throw Error(ErrorCode::kDistributed, "cannot open a store for the ranks: " + text_of(error));
  }
}

}  // namespace rapo
