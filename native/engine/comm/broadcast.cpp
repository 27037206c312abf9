#include "comm/broadcast.h"

#include <ATen/core/Tensor.h>
#include <c10/core/InferenceMode.h>

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>

namespace rapo {
namespace {

/// What a call that waits does at these intervals: it looks whether it is still wanted.
constexpr std::chrono::milliseconds kSlice{20};

struct Job {
  std::string what;
  std::function<void(Transport&)> run;
};

}  // namespace

struct BroadcastGroup::State {
  std::unique_ptr<Transport> transport;
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<Job> jobs;  // the first one is running
  bool is_ending = false;
  std::string failure;  // not empty: no further call is possible

  static void loop(const std::shared_ptr<State>& state) {
    const c10::InferenceMode guard;
    for (;;) {
      std::unique_lock<std::mutex> lock(state->mutex);
      state->changed.wait(lock, [&] { return state->is_ending || !state->jobs.empty(); });
      if (state->jobs.empty() || !state->failure.empty()) return;
      // Others append to the deque meanwhile, which moves no element.
      const Job& job = state->jobs.front();
      lock.unlock();
      std::string failure;
      try {
        job.run(*state->transport);
      } catch (const std::exception& error) {
        failure = job.what + ": " + error.what();
      }
      lock.lock();
      if (!failure.empty() && state->failure.empty()) state->failure = failure;
      state->jobs.pop_front();
      lock.unlock();
      state->changed.notify_all();
    }
  }

  void post(const std::string& what, std::function<void(Transport&)> run) {
    {
      const std::lock_guard<std::mutex> lock(mutex);
      if (!failure.empty()) throw Error(ErrorCode::kDistributed, failure);
      jobs.push_back({what, std::move(run)});
    }
    changed.notify_all();
  }

  /// Waits until no more than `most` jobs are left.
  static void wait(const std::shared_ptr<State>& state, std::size_t most, const Patience& patience) {
    std::unique_lock<std::mutex> lock(state->mutex);
    for (;;) {
      if (!state->failure.empty()) throw Error(ErrorCode::kDistributed, state->failure);
      if (state->jobs.size() <= most) return;
      const std::string what = state->jobs.front().what;
      try {
        patience.control.check();
      } catch (...) {
        give_up(state, what + ": given up");
        throw;
      }
      if (std::chrono::steady_clock::now() > patience.end) {
        const auto seconds = static_cast<double>(patience.timeout_ms) / 1000;
        std::string shown = std::to_string(seconds);
        shown.erase(shown.find_last_not_of('0') + 1);
        if (shown.back() == '.') shown.pop_back();
        give_up(state, what + ": not done within " + shown + " s");
        continue;
      }
      state->changed.wait_for(lock, kSlice);
    }
  }

  /// With the lock held. The library may block in abort() as well.
  static void give_up(const std::shared_ptr<State>& state, const std::string& why) {
    state->failure = why;
    state->is_ending = true;
    state->changed.notify_all();
    std::thread([state] { state->transport->abort(); }).detach();
  }
};

BroadcastGroup::BroadcastGroup(std::unique_ptr<Transport> transport) : state_(std::make_shared<State>()) {
  state_->transport = std::move(transport);
  std::thread([state = state_] { State::loop(state); }).detach();
}

BroadcastGroup::~BroadcastGroup() {
  {
    const std::lock_guard<std::mutex> lock(state_->mutex);
    if (!state_->jobs.empty() && state_->failure.empty()) State::give_up(state_, "the group was closed");
    state_->is_ending = true;
  }
  state_->changed.notify_all();
}

void BroadcastGroup::join(std::int64_t size, const Patience& patience) {
  state_->post("joining a group of " + std::to_string(size),
               [size](Transport& transport) { transport.join(size); });
  State::wait(state_, 0, patience);
}

void BroadcastGroup::broadcast(const std::string& what, at::Tensor tensor, const Patience& patience) {
  state_->post("the broadcast of " + what,
               [tensor = std::move(tensor)](Transport& transport) mutable { transport.broadcast(tensor); });
  State::wait(state_, 2, patience);
}

void BroadcastGroup::flush(const Patience& patience) { State::wait(state_, 0, patience); }

}  // namespace rapo
