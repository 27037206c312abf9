#include "parallel.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "error.h"

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#ifndef NOMINMAX  // defined already by libstdc++ for Windows
#define NOMINMAX
#endif
#include <windows.h>
#endif

namespace rapo {
namespace {

/// Makes sure that this code stays in memory until the pool's threads have ended.
#ifdef _WIN32
// An unload holds the loader's lock, and no thread can end while the lock is held, so that joining would
// never return. The addon is therefore never unloaded on Windows.
bool keep_loaded() {
  HMODULE self = nullptr;
  return GetModuleHandleExW(GET_MODULE_HANDLE_EX_FLAG_FROM_ADDRESS | GET_MODULE_HANDLE_EX_FLAG_PIN,
                            reinterpret_cast<LPCWSTR>(&keep_loaded), &self) != 0;
}
#else
bool keep_loaded() { return true; }  // Joiner joins the threads at unload
#endif

struct Job {
  Job(const std::function<void(std::int64_t)>& body, std::int64_t items) : body(body), items(items) {}

  const std::function<void(std::int64_t)>& body;
  const std::int64_t items;
  std::atomic<std::int64_t> next{0};
  int seats = 0;   // threads that may still join; guarded by the pool's mutex
  int active = 0;  // threads at work besides the caller; guarded by the pool's mutex
  std::mutex failure_mutex;
  std::exception_ptr failure;

  void work() {
    for (;;) {
      const auto i = next.fetch_add(1, std::memory_order_relaxed);
      if (i >= items) return;
      try {
        body(i);
      } catch (...) {
        next.store(items, std::memory_order_relaxed);
        std::lock_guard<std::mutex> lock(failure_mutex);
        if (!failure) failure = std::current_exception();
      }
    }
  }
};

class Pool {
 public:
  void run(std::int64_t items, const std::function<void(std::int64_t)>& body) {
    Job job(body, items);
    const int helpers = static_cast<int>(std::min<std::int64_t>(size_.load(), items)) - 1;
    if (helpers > 0) {
      std::lock_guard<std::mutex> lock(mutex_);
      grow(helpers);
      job.seats = helpers;
      jobs_.push_back(&job);
    }
    if (helpers > 0) work_ready_.notify_all();
    job.work();
    if (helpers > 0) {
      std::unique_lock<std::mutex> lock(mutex_);
      remove(&job);
      work_done_.wait(lock, [&] { return job.active == 0; });
    }
    if (job.failure) std::rethrow_exception(job.failure);
  }

  int size() const { return size_.load(); }

  void set_size(int n) { size_.store(n); }

  static int default_size() { return std::max(1, static_cast<int>(std::thread::hardware_concurrency())); }

  void stop() {
    std::vector<std::thread> threads;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
      threads.swap(threads_);
    }
    work_ready_.notify_all();
    for (auto& thread : threads) thread.join();
  }

 private:
  // If a thread cannot be created, the job has fewer threads; the caller alone can finish it.
  void grow(int wanted) {
    if (threads_.empty() && !keep_loaded()) return;
    while (!stopping_ && static_cast<int>(threads_.size()) < wanted) {
      try {
        threads_.emplace_back([this] { loop(); });
      } catch (const std::system_error&) {
        return;
      }
    }
  }

  void remove(Job* job) {
    const auto found = std::find(jobs_.begin(), jobs_.end(), job);
    if (found != jobs_.end()) jobs_.erase(found);
  }

  void loop() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      work_ready_.wait(lock, [&] { return stopping_ || !jobs_.empty(); });
      if (stopping_) return;
      Job* job = jobs_.front();
      ++job->active;
      if (--job->seats == 0) jobs_.pop_front();
      lock.unlock();
      job->work();
      lock.lock();
      remove(job);  // all items are handed out
      if (--job->active == 0) work_done_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable work_ready_, work_done_;
  std::deque<Job*> jobs_;
  std::vector<std::thread> threads_;
  bool stopping_ = false;
  std::atomic<int> size_{default_size()};
};

// Never destroyed, so that a call that still runs at process exit has a valid mutex.
Pool& pool() {
  static Pool* instance = new Pool;
  return *instance;
}

#ifndef _WIN32
// Node unloads an addon, and its code, when the last worker_thread that loaded the addon ends. No thread may
// run the code then. Static destructors run before that, so one of them joins the threads.
struct Joiner {
  ~Joiner() { pool().stop(); }
} joiner;
#endif

}  // namespace

int kernel_threads() { return pool().size(); }

void set_kernel_threads(int n) {
  if (n < 0 || n > 1024) {
    throw Error(ErrorCode::kInvalidArgument, "threads is " + std::to_string(n) + ", expected in [0, 1024]");
  }
  pool().set_size(n == 0 ? Pool::default_size() : n);
}

void parallel_for(std::int64_t items, const std::function<void(std::int64_t)>& body) {
  if (items <= 0) return;
  if (items == 1) return body(0);
  pool().run(items, body);
}

}  // namespace rapo
