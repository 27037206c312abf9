// What torch.distributed has in a process group that SGLang's workers make by themselves: the store with its
// names for keys, and Gloo.
#include <ATen/core/Tensor.h>

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <utility>

#include "comm/broadcast.h"
#include "comm/c10d.h"

namespace rapo {
namespace {

using std::chrono::milliseconds;

class Gloo final : public Transport {
 public:
  Gloo(c10::intrusive_ptr<c10d::Store> store, std::string address, milliseconds timeout)
      : store_(std::move(store)), address_(std::move(address)), timeout_(timeout) {}

  void join(std::int64_t size) override {
    auto options = c10d::ProcessGroupGloo::Options::create(timeout_);
    options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(address_));
    options->threads = 1;
    guard([&] {
      group_ = c10::make_intrusive<c10d::ProcessGroupGloo>(store_, 0, static_cast<int>(size), options);
    });
  }

  void broadcast(at::Tensor& tensor) override {
    std::vector<at::Tensor> tensors{tensor};
    guard([&] { group_->broadcast(tensors, c10d::BroadcastOptions())->wait(); });
  }

  void abort() noexcept override {}  // Gloo's own timeout ends what blocks

 private:
  template <class F>
  static void guard(const F& body) {
    try {
      body();
    } catch (const std::exception& error) {
      throw Error(ErrorCode::kDistributed, text_of(error));
    }
  }

  c10::intrusive_ptr<c10d::Store> store_;
  std::string address_;
  milliseconds timeout_;
  c10::intrusive_ptr<c10d::Backend> group_;
};

class TorchStore final : public GroupStore {
 public:
  explicit TorchStore(const std::string& name)
      : tcp_(c10::make_intrusive<c10d::TCPStore>("localhost", store_options(0, true, milliseconds(60'000)))),
        // SGLang names the group once, and torch once more.
        group_(with_prefix(name + "/", with_prefix(name, tcp_))) {}

  std::int64_t port() const override { return tcp_->getPort(); }

  void offer(const std::vector<std::uint8_t>& id) override { with_prefix("cuda/", group_)->set("0", id); }

  std::unique_ptr<Transport> gloo(const std::string& address, std::int64_t timeout_ms) override {
    return std::make_unique<Gloo>(with_prefix("cpu/", group_), address, milliseconds(timeout_ms));
  }

 private:
  static c10::intrusive_ptr<c10d::Store> with_prefix(const std::string& prefix,
                                                     c10::intrusive_ptr<c10d::Store> store) {
    return c10::make_intrusive<c10d::PrefixStore>(prefix, std::move(store));
  }

  c10::intrusive_ptr<c10d::TCPStore> tcp_;
  c10::intrusive_ptr<c10d::Store> group_;
};

}  // namespace

std::shared_ptr<GroupStore> GroupStore::open(const std::string& name) {
  try {
    return std::make_shared<TorchStore>(name);
  } catch (const std::exception& error) {
    throw Error(ErrorCode::kDistributed, "cannot open a store for the servers: " + text_of(error));
  }
}

}  // namespace rapo
