// NCCL as rank 0 of a group. Its functions are found in the library at run time, so that neither its header
// nor the library is needed to compile. Numbers of nccl.h (2.29): ncclUint8 1, ncclFloat32 7, ncclSum 0.
#include <ATen/ops/zeros.h>
#include <dlfcn.h>

#include <array>
#include <atomic>
#include <type_traits>

#include "comm/broadcast.h"
#include "cuda/device.h"

namespace rapo {
namespace {

constexpr int kUint8 = 1, kFloat32 = 7, kSum = 0;

struct Id {
  std::array<char, 128> bytes;
};

class Library {
 public:
  explicit Library(const std::string& file) {
    // The libnccl that libtorch has loaded is found by this name, wherever it is.
    const std::string name = file.empty() ? "libnccl.so.2" : file;
    void* handle =
        dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);  // stays open: the thread may outlive all else
    if (!handle) {
      const char* why = dlerror();
      throw Error(ErrorCode::kDevice, "NCCL cannot be loaded: " + std::string(why ? why : name));
    }
    const auto find = [&](auto& function, const char* symbol) {
      void* found = dlsym(handle, symbol);
      if (!found) throw Error(ErrorCode::kDevice, name + " is no NCCL: it has no " + symbol);
      function = reinterpret_cast<std::decay_t<decltype(function)>>(found);
    };
    find(get_unique_id, "ncclGetUniqueId");
    find(comm_init_rank, "ncclCommInitRank");
    find(all_reduce, "ncclAllReduce");
    find(broadcast, "ncclBroadcast");
    find(comm_abort, "ncclCommAbort");
    find(comm_destroy, "ncclCommDestroy");
    find(error_text, "ncclGetErrorString");
  }

  void check(int code, const char* what) const {
    if (code != 0) throw Error(ErrorCode::kDistributed, std::string(what) + ": " + error_text(code));
  }

  int (*get_unique_id)(Id*) = nullptr;
  int (*comm_init_rank)(void** comm, int size, Id id, int rank) = nullptr;
  int (*all_reduce)(const void* from, void* to, std::size_t count, int type, int operation, void* comm,
                    void* stream) = nullptr;
  int (*broadcast)(const void* from, void* to, std::size_t count, int type, int root, void* comm,
                   void* stream) = nullptr;
  int (*comm_abort)(void* comm) = nullptr;
  int (*comm_destroy)(void* comm) = nullptr;
  const char* (*error_text)(int code) = nullptr;
};

class Nccl final : public Transport {
 public:
  Nccl(const std::string& library, const std::string& device, bool warms_up)
      : library_(library), device_(device), warms_up_(warms_up) {
    library_.check(library_.get_unique_id(&id_), "ncclGetUniqueId");
  }
  Nccl(const Nccl&) = delete;
  Nccl& operator=(const Nccl&) = delete;
  ~Nccl() override {
    if (void* comm = comm_.exchange(nullptr)) library_.comm_destroy(comm);
  }

  std::vector<std::uint8_t> id() const { return {id_.bytes.begin(), id_.bytes.end()}; }

  void join(std::int64_t size) override {
    if (device_.is_cuda()) device::enter(device_.index());
    void* comm = nullptr;
    library_.check(library_.comm_init_rank(&comm, static_cast<int>(size), id_, 0), "ncclCommInitRank");
    comm_ = comm;
    if (!warms_up_) return;
    warm_up_ = at::zeros({1}, at::TensorOptions(at::kFloat).device(device_));
    void* one = warm_up_.data_ptr();
    finish(library_.all_reduce(one, one, 1, kFloat32, kSum, comm, device::stream(device_)), "ncclAllReduce");
  }

  void broadcast(at::Tensor& tensor) override {
    void* data = tensor.data_ptr();
    finish(library_.broadcast(data, data, tensor.nbytes(), kUint8, 0, comm_, device::stream(device_)),
           "ncclBroadcast");
  }

  void abort() noexcept override {
    if (void* comm = comm_.exchange(nullptr)) library_.comm_abort(comm);
  }

 private:
  void finish(int code, const char* what) {
    if (code != 0) abort();  // such a communicator must not be destroyed
    library_.check(code, what);
    device::synchronize(device_);
  }

  Library library_;
  at::Device device_;
  bool warms_up_;
  Id id_{};
  std::atomic<void*> comm_{nullptr};
  at::Tensor warm_up_;
};

}  // namespace

void check_nccl(const std::string& library) { const Library found(library); }

std::unique_ptr<Transport> open_nccl(const std::string& library, const std::string& device, bool warms_up,
                                     std::vector<std::uint8_t>& id) {
  auto nccl = std::make_unique<Nccl>(library, device, warms_up);
  id = nccl->id();
  return nccl;
}

}  // namespace rapo
