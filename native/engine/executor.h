// The one thread that all libtorch work of the process runs on, so that there is one OpenMP team, whichever
// of libuv's workers a call came in on.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

namespace rapo {

class Executor {
 public:
  /// Never destroyed: its thread must not outlive the mutex at exit.
  static Executor& instance() {
    static auto* executor = new Executor;
    return *executor;
  }

  /// Runs f on the engine's thread, after the calls that came before, and waits. What f throws is thrown
  /// here.
  template <class F>
  auto run(F&& f) -> decltype(f()) {
    // Shared: the engine's thread may still be leaving the task when the result is here.
    auto task = std::make_shared<std::packaged_task<decltype(f())()>>(std::forward<F>(f));
    auto result = task->get_future();
    {
      std::lock_guard<std::mutex> lock(mutex_);
      queue_.emplace_back([task] { (*task)(); });
    }
    ready_.notify_one();
    return result.get();
  }

 private:
  Executor() {
    std::thread([this] { loop(); }).detach();
  }

  void loop() {
    for (;;) {
      std::function<void()> next;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        ready_.wait(lock, [this] { return !queue_.empty(); });
        next = std::move(queue_.front());
        queue_.pop_front();
      }
      next();
    }
  }

  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<std::function<void()>> queue_;
};

}  // namespace rapo
