// Threads that run tasks in the order in which the tasks were posted.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

namespace rapo::bindings {

class Executor {
 public:
  explicit Executor(std::size_t most_threads) : most_threads_(most_threads) {}

  /// Waits for running tasks. Tasks that have not started are dropped.
  ~Executor() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      ending_ = true;
    }
    ready_.notify_all();
    for (auto& thread : threads_) thread.join();
  }

  /// A task must not throw. Throws std::system_error if not even one thread can be created.
  void post(std::function<void()> task) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (queue_.size() >= idle_ && threads_.size() < most_threads_) {
      try {
        threads_.emplace_back([this] { loop(); });
      } catch (const std::system_error&) {
        if (threads_.empty()) throw;
      }
    }
    queue_.push_back(std::move(task));
    ready_.notify_one();
  }

 private:
  void loop() {
    for (;;) {
      std::function<void()> next;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        ++idle_;
        ready_.wait(lock, [this] { return ending_ || !queue_.empty(); });
        --idle_;
        if (ending_) return;
        next = std::move(queue_.front());
        queue_.pop_front();
      }
      next();
    }
  }

  const std::size_t most_threads_;
  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<std::function<void()>> queue_;
  std::vector<std::thread> threads_;
  std::size_t idle_ = 0;
  bool ending_ = false;
};

}  // namespace rapo::bindings
