#include "emulator.h"

#include <sys/mman.h>
#include <unistd.h>

#ifndef __x86_64__
#include <ucontext.h>
#endif

#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <utility>

struct EmulatedGraph {
  std::vector<std::function<cudaError_t()>> work;
};
struct EmulatedStream {
  EmulatedGraph graph;  // what has been captured so far
};

namespace emulator {
namespace {

// ---- fibres ----

constexpr std::size_t kStackBytes = 128 << 10;

#ifdef __x86_64__
// Saves what a function must preserve, exchanges the stacks, restores the other's.
extern "C" void rapo_switch_stack(void** save, void* to);
asm(R"(
.text
.type rapo_switch_stack, @function
rapo_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size rapo_switch_stack, .-rapo_switch_stack
)");

class Context {
 public:
  void start(char* stack, std::size_t bytes, void (*entry)()) {
    auto* top = reinterpret_cast<void**>(stack + bytes - 64);
    *--top = nullptr;  // entry's return address: it never returns; keeps the stack as the ABI wants it
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    stack_ = top;
  }
  static void exchange(Context& from, Context& to) { rapo_switch_stack(&from.stack_, to.stack_); }

 private:
  void* stack_ = nullptr;
};
#else
class Context {
 public:
  void start(char* stack, std::size_t bytes, void (*entry)()) {
    getcontext(&context_);
    context_.uc_stack.ss_sp = stack;
    context_.uc_stack.ss_size = bytes;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
  }
  static void exchange(Context& from, Context& to) { swapcontext(&from.context_, &to.context_); }

 private:
  ucontext_t context_;
};
#endif

/// Stacks are kept from launch to launch: making them takes longer than most kernels.
struct Stack {
  char* memory;
  Stack() {
    memory = static_cast<char*>(mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (memory == MAP_FAILED) std::abort();
  }
};
std::vector<Stack> stacks;

// ---- a cluster of blocks ----

/// Who last wrote a byte of shared memory and who last read it, and when: at which of its block's and its
/// cluster's barriers. Thread numbers count through the cluster from 1.
struct Shadow {
  int writer = 0, reader = 0;
  int write_block = 0, write_cluster = 0, read_block = 0, read_cluster = 0;
  bool many_readers = false;
};

struct Barrier {
  int expected = 0, arrived = 0, generation = 0, line = 0;
};

struct Warp {
  unsigned mask = 0, arrived = 0;
  int generation = 0, alive = 0;
  std::uint64_t handed_in[32] = {}, result[32] = {};
};

struct Block {
  Index index;
  std::vector<unsigned char> shared;
  std::vector<Shadow> shadow;
  Barrier barrier;
  std::vector<Warp> warps;
};

struct AsyncCopy {
  std::int64_t offset;
  const void* from;
};

}  // namespace

struct Thread {
  Context context;
  Index index;
  int number = 0;  // in the cluster
  int rank = 0;    // of its block
  Block* block = nullptr;
  bool ended = false;
  const int* waits_for = nullptr;  // runs again once *waits_for differs from seen
  int seen = 0;
  int block_barriers = 0, cluster_barriers = 0;
  std::vector<AsyncCopy> group;
  std::deque<std::vector<AsyncCopy>> groups;
};

Thread* current = nullptr;

namespace {

struct Launch {
  const cudaLaunchConfig_t* config;
  void (*body)(void*);
  void* argument;
  Index grid, threads;
  int cluster = 1;
  std::vector<Block> blocks;
  std::vector<Thread> fibres;
  Barrier cluster_barrier;
  std::string failure;
};

std::mutex launching;
Launch* launch = nullptr;
Context scheduler;
std::string last_failure;

// Global memory: allocations by address.
struct Allocation {
  std::size_t bytes;
  char* mapping;
  std::size_t mapped;
};
std::mutex allocating;
std::map<std::uintptr_t, Allocation> allocations;
constexpr std::size_t kDeviceBytes = std::size_t{16} << 30;
std::size_t allocated = 0;

EmulatedStream* captured = nullptr;  // the stream that is being captured
bool capturing() { return captured || std::getenv("RAPO_CUDA_EMULATOR_CAPTURE") != nullptr; }

void yield_to_scheduler() { Context::exchange(current->context, scheduler); }

void wait_for(const int& generation) {
  current->waits_for = &generation;
  current->seen = generation;
  yield_to_scheduler();
}

void fibre_main() {
  launch->body(launch->argument);
  if (!current->groups.empty() || !current->group.empty()) {
    emulator::fail("a thread ended while asynchronous copies of it were under way");
  }
  current->ended = true;
  yield_to_scheduler();
  std::abort();
}

std::string name_of(const Thread& t) {
  return "thread " + std::to_string(t.index.x) + " of block " + std::to_string(t.block->index.x);
}

bool run_cluster(Launch& l, unsigned first_block) {
  const int threads = static_cast<int>(l.threads.x);
  for (int rank = 0; rank < l.cluster; ++rank) {
    Block& block = l.blocks[rank];
    block.index = {first_block + rank, 0, 0};
    block.shared.assign(l.config->dynamicSmemBytes, 0xa5);
    block.shadow.assign(l.config->dynamicSmemBytes, Shadow{});
    block.barrier = {threads, 0, 0, 0};
    block.warps.assign((threads + 31) / 32, Warp{});
    for (int t = 0; t < threads; ++t) ++block.warps[t / 32].alive;
    for (int t = 0; t < threads; ++t) {
      Thread& fibre = l.fibres[rank * threads + t];
      fibre = Thread{};
      fibre.index = {static_cast<unsigned>(t), 0, 0};
      fibre.number = rank * threads + t + 1;
      fibre.rank = rank;
      fibre.block = &block;
      fibre.context.start(stacks[rank * threads + t].memory, kStackBytes, fibre_main);
    }
  }
  l.cluster_barrier = {threads * l.cluster, 0, 0, 0};
  std::size_t left = l.fibres.size();
  while (left > 0) {
    bool progress = false;
    for (Thread& fibre : l.fibres) {
      if (fibre.ended || (fibre.waits_for && *fibre.waits_for == fibre.seen)) continue;
      fibre.waits_for = nullptr;
      current = &fibre;
      Context::exchange(scheduler, fibre.context);
      current = nullptr;
      if (!l.failure.empty()) return false;
      if (fibre.ended) --left;
      progress = true;
    }
    if (!progress) {
      std::size_t ended = 0;
      for (const Thread& fibre : l.fibres) ended += fibre.ended;
      l.failure = "deadlock: " + std::to_string(l.fibres.size() - ended) +
                  " threads wait at a barrier or shuffle, " + std::to_string(ended) + " have ended";
      return false;
    }
  }
  return true;
}

void arrive(Barrier& barrier) {
  const int& generation = barrier.generation;
  if (++barrier.arrived == barrier.expected) {
    barrier.arrived = 0;
    ++barrier.generation;
  } else {
    wait_for(generation);
  }
}

}  // namespace

const Index& thread_index() { return current->index; }
const Index& block_index() { return current->block->index; }
const Index& block_dim() { return launch->threads; }
const Index& grid_dim() { return launch->grid; }
int lane() { return static_cast<int>(current->index.x % 32); }
int rank() { return current->rank; }
unsigned char* shared_base(int rank) { return launch->blocks[rank].shared.data(); }

void fail(const std::string& message) {
  launch->failure = name_of(*current) + ": " + message;
  yield_to_scheduler();
  std::abort();
}

namespace {

/// Whether a barrier lies between this thread and what thread `other` did at those counts.
bool ordered(int other, int block_count, int cluster_count) {
  const Thread& t = *current;
  if (other == 0 || other == t.number || cluster_count != t.cluster_barriers) return true;
  const bool same_block = launch->fibres[other - 1].block == t.block;
  return same_block && block_count != t.block_barriers;
}

Shadow* shadow_of(int rank, std::int64_t offset, std::int64_t bytes) {
  if (rank < 0 || rank >= launch->cluster)
    fail("shared memory of block " + std::to_string(rank) + " of the cluster");
  auto& shadow = launch->blocks[rank].shadow;
  if (offset < 0 || offset + bytes > static_cast<std::int64_t>(shadow.size())) {
    fail("access of " + std::to_string(bytes) + " bytes at " + std::to_string(offset) + " of " +
         std::to_string(shadow.size()) + " bytes of shared memory");
  }
  return shadow.data() + offset;
}

}  // namespace

void shared_read(int rank, std::int64_t offset, std::int64_t bytes) {
  Shadow* const shadow = shadow_of(rank, offset, bytes);
  const Thread& t = *current;
  for (std::int64_t i = 0; i < bytes; ++i) {
    Shadow& s = shadow[i];
    if (s.writer == 0)
      fail("read of shared memory at " + std::to_string(offset) + ", which nobody has written");
    if (!ordered(s.writer, s.write_block, s.write_cluster)) {
      fail("race: read of shared memory at " + std::to_string(offset) + ", written by " +
           name_of(launch->fibres[s.writer - 1]) + " with no barrier between");
    }
    const bool same_time = s.read_block == t.block_barriers && s.read_cluster == t.cluster_barriers;
    s.many_readers = s.reader != 0 && same_time && (s.many_readers || s.reader != t.number);
    s.reader = t.number;
    s.read_block = t.block_barriers;
    s.read_cluster = t.cluster_barriers;
  }
}

void shared_write(std::int64_t offset, std::int64_t bytes) {
  Thread& t = *current;
  Shadow* const shadow = shadow_of(t.rank, offset, bytes);
  for (std::int64_t i = 0; i < bytes; ++i) {
    Shadow& s = shadow[i];
    const bool read_by_others = s.many_readers
                                    ? s.read_cluster == t.cluster_barriers && s.read_block == t.block_barriers
                                    : !ordered(s.reader, s.read_block, s.read_cluster);
    if (read_by_others || !ordered(s.writer, s.write_block, s.write_cluster)) {
      fail("race: write of shared memory at " + std::to_string(offset) + ", " +
           (read_by_others ? "read by another thread" : "written by another thread") +
           " with no barrier between");
    }
    s.writer = t.number;
    s.write_block = t.block_barriers;
    s.write_cluster = t.cluster_barriers;
    s.reader = 0;
    s.many_readers = false;
  }
}

void async_copy(std::int64_t offset, const void* from) {
  shadow_of(current->rank, offset, 16);
  if (offset % 16 != 0)
    fail("asynchronous copy to shared memory at " + std::to_string(offset) + ", misaligned");
  current->group.push_back({offset, from});
}

void async_commit() {
  current->groups.push_back(std::move(current->group));
  current->group.clear();
}

void async_wait(int pending) {
  while (static_cast<int>(current->groups.size()) > pending) {
    for (const auto& copy : current->groups.front()) {
      shared_write(copy.offset, 16);
      std::memcpy(shared_base(current->rank) + copy.offset, copy.from, 16);
    }
    current->groups.pop_front();
  }
}

void check_global(const void* p, std::int64_t bytes, const char* what) {
  const auto address = reinterpret_cast<std::uintptr_t>(p);
  if (address % bytes != 0) fail(std::string(what) + " of global memory at a misaligned address");
  auto found = allocations.upper_bound(address);
  if (found == allocations.begin() || address + bytes > (--found)->first + found->second.bytes) {
    fail(std::string(what) + " of " + std::to_string(bytes) +
         " bytes of global memory outside any allocation");
  }
}

void block_barrier(int line) {
  Barrier& barrier = current->block->barrier;
  if (barrier.arrived > 0 && barrier.line != line) {
    fail("reaches the barrier in line " + std::to_string(line) + " while some threads wait at line " +
         std::to_string(barrier.line));
  }
  barrier.line = line;
  ++current->block_barriers;
  arrive(barrier);
}

void cluster_barrier() {
  ++current->cluster_barriers;
  arrive(launch->cluster_barrier);
}

std::uint64_t shuffle(unsigned mask, std::uint64_t value, int from) {
  Warp& warp = current->block->warps[current->index.x / 32];
  const unsigned own = 1u << lane();
  if (!(mask & own)) fail("a shuffle's mask leaves out the thread that calls it");
  if (mask != (warp.alive == 32 ? 0xffffffffu : (1u << warp.alive) - 1))
    fail("a shuffle's mask names no thread");
  if (from < 0 || from >= 32 || !(mask >> from & 1)) fail("a shuffle asks a lane outside its mask");
  if (warp.arrived == 0) warp.mask = mask;
  if (warp.mask != mask) fail("the lanes of a shuffle have different masks");
  warp.arrived |= own;
  warp.handed_in[lane()] = value;
  if (warp.arrived == mask) {
    std::copy(std::begin(warp.handed_in), std::end(warp.handed_in), std::begin(warp.result));
    warp.arrived = 0;
    ++warp.generation;
  } else {
    wait_for(warp.generation);
  }
  return warp.result[from];
}

cudaError_t run(const cudaLaunchConfig_t& config, void (*body)(void*), void* argument) {
  const std::lock_guard<std::mutex> lock(launching);
  const std::lock_guard<std::mutex> memory(allocating);
  Launch l;
  l.config = &config;
  l.body = body;
  l.argument = argument;
  l.grid = {config.gridDim.x, 1, 1};
  l.threads = {config.blockDim.x, 1, 1};
  for (unsigned i = 0; i < config.numAttrs; ++i)
    l.cluster = static_cast<int>(config.attrs[i].val.clusterDim.x);
  if (l.grid.x == 0 || l.threads.x == 0 || l.threads.x > 1024 || l.cluster > 8 || l.grid.x % l.cluster != 0 ||
      config.dynamicSmemBytes > 227 << 10) {
    last_failure = "invalid launch configuration";
    return cudaErrorInvalidValue;
  }
  l.blocks.resize(l.cluster);
  l.fibres.resize(static_cast<std::size_t>(l.threads.x) * l.cluster);
  while (stacks.size() < l.fibres.size()) stacks.emplace_back();
  launch = &l;
  bool ok = true;
  for (unsigned block = 0; ok && block < l.grid.x; block += l.cluster) ok = run_cluster(l, block);
  launch = nullptr;
  if (ok) return cudaSuccess;
  last_failure = "emulated kernel: " + l.failure;
  return cudaErrorLaunchFailure;
}

cudaError_t enqueue(cudaStream_t stream, std::function<cudaError_t()> work) {
  if (!captured) return work();
  if (stream != captured) return cudaErrorStreamCaptureUnsupported;
  captured->graph.work.push_back(std::move(work));
  return cudaSuccess;
}

bool in_allocation(const void* p, std::size_t bytes) {
  const std::lock_guard<std::mutex> lock(allocating);
  const auto address = reinterpret_cast<std::uintptr_t>(p);
  auto found = allocations.upper_bound(address);
  return found != allocations.begin() && address + bytes <= (--found)->first + found->second.bytes;
}

cudaError_t report_failure(const std::string& message) {
  last_failure = message;
  return cudaErrorLaunchFailure;
}

}  // namespace emulator

using namespace emulator;

cudaError_t cudaGetDeviceCount(int* count) {
  const char* wanted = std::getenv("RAPO_CUDA_EMULATOR_DEVICES");
  *count = wanted ? std::atoi(wanted) : 1;
  return *count > 0 ? cudaSuccess : cudaErrorNoDevice;
}

cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : cudaErrorInvalidDevice; }

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) {
  *p = {};
  std::strcpy(p->name, "emulated on the host");
  const char* capability = std::getenv("RAPO_CUDA_EMULATOR_CAPABILITY");
  p->major = capability ? std::atoi(capability) / 10 : 9;
  p->minor = capability ? std::atoi(capability) % 10 : 0;
  p->multiProcessorCount = 2;  // few, so that blocks have several rows
  const char* l2 = std::getenv("RAPO_CUDA_EMULATOR_L2");
  p->l2CacheSize = l2 ? std::atoi(l2) : 1 << 20;
  p->totalGlobalMem = kDeviceBytes;
  const char* shared = std::getenv("RAPO_CUDA_EMULATOR_SHARED");
  p->sharedMemPerBlockOptin = shared ? std::atoi(shared) : 227 << 10;
  p->sharedMemPerMultiprocessor = p->sharedMemPerBlockOptin + 1024;
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  *total = kDeviceBytes;
  const char* left = std::getenv("RAPO_CUDA_EMULATOR_FREE");
  *free = left ? static_cast<std::size_t>(std::atoll(left)) : kDeviceBytes - allocated;
  return cudaSuccess;
}

cudaError_t cudaMalloc(void** pointer, std::size_t bytes) {
  if (capturing()) return cudaErrorStreamCaptureUnsupported;
  const std::lock_guard<std::mutex> lock(allocating);
  const char* left = std::getenv("RAPO_CUDA_EMULATOR_FREE");
  if (bytes > (left ? static_cast<std::size_t>(std::atoll(left)) : kDeviceBytes - allocated)) {
    return cudaErrorMemoryAllocation;
  }
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t padded = (std::max<std::size_t>(bytes, 1) + 255) / 256 * 256;
  const std::size_t mapped = (padded + page - 1) / page * page + 2 * page;
  void* mapping =
      mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) return cudaErrorMemoryAllocation;
  auto* const begin = static_cast<char*>(mapping);
  mprotect(begin, page, PROT_NONE);
  mprotect(begin + mapped - page, page, PROT_NONE);
  char* const data = begin + mapped - page - padded;  // its end at the page that cannot be read
  if (bytes <= std::size_t{64} << 20) std::memset(data, 0xff, bytes);  // NaN: nobody has written it
  allocated += bytes;
  allocations[reinterpret_cast<std::uintptr_t>(data)] = {bytes, begin, mapped};
  *pointer = data;
  return cudaSuccess;
}

cudaError_t cudaFree(void* pointer) {
  if (!pointer) return cudaSuccess;
  if (capturing()) return cudaErrorStreamCaptureUnsupported;
  const std::lock_guard<std::mutex> lock(allocating);
  const auto found = allocations.find(reinterpret_cast<std::uintptr_t>(pointer));
  if (found == allocations.end()) return cudaErrorInvalidValue;
  allocated -= found->second.bytes;
  munmap(found->second.mapping, found->second.mapped);
  allocations.erase(found);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  return enqueue(stream, [=] {
    std::memcpy(to, from, bytes);
    return cudaSuccess;
  });
}

cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream) {
  return enqueue(stream, [=] {
    std::memset(to, value, bytes);
    return cudaSuccess;
  });
}

cudaError_t cudaStreamSynchronize(cudaStream_t) {
  return captured ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new EmulatedStream;
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  if (!stream || captured) return cudaErrorStreamCaptureUnsupported;
  captured = stream;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  if (captured != stream) return cudaErrorStreamCaptureUnsupported;
  captured = nullptr;
  *graph = new EmulatedGraph(std::move(stream->graph));
  stream->graph = {};
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph, unsigned long long) {
  *executable = graph;
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  for (const auto& work : executable->work) {
    const auto error = enqueue(stream, work);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t cudaGetLastError() { return cudaSuccess; }

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorStreamCaptureUnsupported:
      return "operation not permitted when stream is capturing";
    case cudaErrorInvalidValue:
    case cudaErrorLaunchFailure:
      return last_failure.c_str();
  }
  return "unknown error";
}
