// Memory and threads of the kernels' calls, without Node: what `npm run test:sanitize` runs under the sanitizers.
// Every array ends where it must not be read or written beyond, and gaps between rows hold what a call must not touch.
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "cpu/select.h"
#include "dtypes.h"
#include "loss.h"
#include "parallel.h"
#include "penalty.h"
#include "surrogate.h"

namespace {

using namespace rapo;

std::atomic<int> passed{0}, failed{0};

void check(bool ok, const std::string& what) {
  ++(ok ? passed : failed);
  if (!ok) std::printf("FAILED %s\n", what.c_str());
}

/// An allocation of exactly that many bytes, none spare: a vector may keep more.
template <class T = unsigned char>
class Exact {
 public:
  explicit Exact(std::int64_t count) : size_(count), data_(new T[static_cast<std::size_t>(count)]()) {}
  T* get() { return data_.get(); }
  const T* get() const { return data_.get(); }
  T& operator[](std::int64_t i) { return data_[static_cast<std::size_t>(i)]; }
  const T& operator[](std::int64_t i) const { return data_[static_cast<std::size_t>(i)]; }
  std::int64_t size() const { return size_; }
  bool operator==(const Exact& other) const {
    return size_ == other.size_ &&
           std::memcmp(get(), other.get(), static_cast<std::size_t>(size_) * sizeof(T)) == 0;
  }

 private:
  std::int64_t size_;
  std::unique_ptr<T[]> data_;
};

/// (rows, width) of a dtype with a gap between the rows and none after the last; what gaps hold is NaN.
struct Matrix {
  std::int64_t rows, width, stride;
  DType dtype;
  Exact<> storage;

  Matrix(std::int64_t rows, std::int64_t width, std::int64_t gap, DType dtype)
      : rows(rows),
        width(width),
        stride(width + gap),
        dtype(dtype),
        storage(((rows - 1) * stride + width) * static_cast<std::int64_t>(dtype_size(dtype))) {
    for (std::int64_t i = 0; i < (rows - 1) * stride + width; ++i)
      store_scalar(storage.get(), dtype, i, std::nan(""));
  }
  double at(std::int64_t row, std::int64_t v) const {
    return load_scalar(storage.get(), dtype, row * stride + v);
  }
  void set(std::int64_t row, std::int64_t v, double x) {
    store_scalar(storage.get(), dtype, row * stride + v, x);
  }
  bool gaps_untouched() const {
    for (std::int64_t row = 0; row + 1 < rows; ++row) {
      for (std::int64_t v = width; v < stride; ++v) {
        if (!std::isnan(at(row, v))) return false;
      }
    }
    return true;
  }
};

struct PerToken {
  Exact<float> logprobs, ref_logprobs, kl, entropy, ratio;
  Exact<std::uint8_t> clipped;

  explicit PerToken(std::int64_t rows)
      : logprobs(rows), ref_logprobs(rows), kl(rows), entropy(rows), ratio(rows), clipped(rows) {}
  void attach(Outputs& outputs) {
    outputs.logprobs = logprobs.get();
    outputs.ref_logprobs = ref_logprobs.get();
    outputs.kl = kl.get();
    outputs.entropy = entropy.get();
    outputs.ratio = ratio.get();
    outputs.clipped = clipped.get();
  }
  bool operator==(const PerToken& other) const {
    return logprobs == other.logprobs && ref_logprobs == other.ref_logprobs && kl == other.kl &&
           entropy == other.entropy && ratio == other.ratio && clipped == other.clipped;
  }
};

Objective objective_of(Penalty penalty, Surrogate surrogate) {
  Objective objective;
  objective.penalty = penalty;
  objective.surrogate = surrogate;
  objective.kl_coef = penalty == Penalty::kNone ? 0 : 0.3;
  objective.entropy_coef = 0.05;
  objective.temperature = 0.8;
  objective.max_log_ratio = 4;  // so that no gradient is beyond float16's range
  if (surrogate == Surrogate::kSapo) {
    objective.clip_low = 1;
    objective.clip_high = std::numeric_limits<double>::infinity();
  }
  return objective;
}

/// Every third row is masked and holds what no call may look at.
struct Case {
  Matrix logits, ref;
  Exact<std::int32_t> ids, offsets;
  Exact<float> weights, advantages, phi, old, policy_weights;
  Objective objective;
  Batch batch;

  Case(std::int64_t rows, std::int64_t vocab_size, std::int64_t gap, DType dtype, Penalty penalty,
       Surrogate surrogate)
      : logits(rows, vocab_size, gap, dtype),
        ref(rows, vocab_size, 2 * gap, dtype),
        ids(rows),
        offsets(3),
        weights(rows),
        advantages(rows),
        phi(rows),
        old(rows),
        policy_weights(rows),
        objective(objective_of(penalty, surrogate)) {
    std::mt19937 random(static_cast<unsigned>(vocab_size * 31 + rows));
    std::normal_distribution<double> normal(0, 2);
    for (std::int64_t i = 0; i < rows; ++i) {
      const bool masked = i % 3 == 2;
      ids[i] = masked ? std::numeric_limits<std::int32_t>::max()
                      : static_cast<std::int32_t>(random() % static_cast<unsigned>(vocab_size));
      weights[i] = masked ? 0 : 0.25F;
      advantages[i] = masked ? std::nanf("") : i < rows / 2 ? 1.5F : -0.75F;
      phi[i] = masked ? 7 : i % 2 ? 0 : 0.3F;
      old[i] = masked ? std::nanf("") : -2;
      policy_weights[i] = masked ? -1 : i < rows / 2 ? 0.5F : 2;
      for (std::int64_t v = 0; !masked && v < vocab_size; ++v) {
        logits.set(i, v, normal(random));
        ref.set(i, v, normal(random));
      }
    }
    offsets[1] = static_cast<std::int32_t>(rows / 2);
    offsets[2] = static_cast<std::int32_t>(rows);
    point();
  }
  Case(const Case&) = delete;

  void point() {
    batch.rows = logits.rows;
    batch.vocab_size = logits.width;
    batch.dtype = logits.dtype;
    batch.logits = logits.storage.get();
    batch.logits_stride = logits.stride;
    batch.ref_stride = ref.stride;
    if (objective.penalty != Penalty::kNone) batch.ref_logits = ref.storage.get();
    batch.token_ids = ids.get();
    batch.token_weights = weights.get();
    batch.advantages = advantages.get();
    if (traits(objective.penalty).reweighted) batch.ref_weights = phi.get();
    batch.old_logprobs = old.get();
    batch.policy_weights = policy_weights.get();
    if (objective.surrogate == Surrogate::kGspo) {
      batch.sequences = 2;
      batch.sequence_offsets = offsets.get();
    }
  }
};

/// As in kernels.cpp: roundings of float32 that a result may be off, of numbers of the size of the largest.
constexpr double kRelative = 64 * 0x1p-24;

double rounding(DType dtype) {
  return dtype == DType::kFloat32 ? 0 : dtype == DType::kBFloat16 ? 0x1p-8 : 0x1p-11;
}

bool near(const Matrix& got, const Matrix& want) {
  for (std::int64_t row = 0; row < want.rows; ++row) {
    double largest = 0.1;
    for (std::int64_t v = 0; v < want.width; ++v) largest = std::fmax(largest, std::fabs(want.at(row, v)));
    for (std::int64_t v = 0; v < want.width; ++v) {
      const double w = want.at(row, v), off = std::fabs(got.at(row, v) - w);
      // The logits are within ±10, which is what a rounding of the exponent is multiplied with; 2^-25 is
      // float16's.
      if (!(off <= 10 * kRelative * largest + rounding(got.dtype) * std::fabs(w) + 0x1p-25)) return false;
    }
  }
  return true;
}

/// New, in float32, in place and without a gradient: the oracle's values, the same bits, and nothing else
/// touched.
void losses(const std::string& name, Case& c) {
  const auto rows = c.batch.rows, vocab_size = c.batch.vocab_size;
  Matrix want(rows, vocab_size, 0, DType::kFloat32);
  Outputs outputs;
  outputs.grad_logits = want.storage.get();
  outputs.grad_stride = want.stride;
  const auto oracle = reference::policy_loss(c.batch, c.objective, outputs);

  PerToken first(rows), second(rows), bare(rows);
  Matrix own(rows, vocab_size, 5, c.batch.dtype), wide(rows, vocab_size, 0, DType::kFloat32);
  const auto into = [&](Matrix& grad, PerToken& tokens) {
    Outputs to;
    to.grad_logits = grad.storage.get();
    to.grad_dtype = grad.dtype;
    to.grad_stride = grad.stride;
    tokens.attach(to);
    return policy_loss(c.batch, c.objective, to).loss;
  };
  const double loss = into(own, first);
  check(std::fabs(loss - oracle.loss) <= 10 * kRelative * static_cast<double>(rows) * 10,
        name + ": loss " + std::to_string(loss) + ", want " + std::to_string(oracle.loss));
  check(near(own, want), name + ": gradient");
  check(own.gaps_untouched(), name + ": wrote between the rows");
  check(into(wide, second) == loss && near(wide, want) && first == second, name + ": float32 gradient");
  Outputs none;
  bare.attach(none);
  check(policy_loss(c.batch, c.objective, none).loss == loss && bare == first, name + ": no gradient");
  check(policy_loss(c.batch, c.objective, Outputs{}).loss == loss, name + ": no outputs at all");

  PerToken third(rows);
  check(into(c.logits, third) == loss && third == first, name + ": in place");
  bool same = c.logits.gaps_untouched();
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t v = 0; v < vocab_size; ++v) same = same && c.logits.at(row, v) == own.at(row, v);
  }
  check(same, name + ": gradient in place");
}

void gathers(const std::string& name, std::int64_t vocab_size, DType dtype) {
  const Case c(4, vocab_size, 3, dtype, Penalty::kNone, Surrogate::kClip);
  LogitRows rows;
  rows.rows = 2;  // the two before the first masked one
  rows.vocab_size = vocab_size;
  rows.dtype = dtype;
  rows.data = c.batch.logits;
  rows.stride = c.logits.stride;
  Exact<float> got_logprobs(2), got_entropy(2), got_sum(2), logprobs(2), entropy(2), sum(2);
  gather_logprobs(rows, c.ids.get(), 0.7, {got_logprobs.get(), got_entropy.get(), got_sum.get()});
  reference::gather_logprobs(rows, c.ids.get(), 0.7, {logprobs.get(), entropy.get(), sum.get()});
  for (int i = 0; i < 2; ++i) {
    const auto close = [](float a, float b) { return std::fabs(a - b) <= 10 * kRelative * 10; };
    check(close(got_logprobs[i], logprobs[i]) && close(got_entropy[i], entropy[i]) && close(got_sum[i], sum[i]),
          name + ": gather, row " + std::to_string(i));
  }
  Exact<float> alone(2);
  gather_logprobs(rows, nullptr, 0.7, {nullptr, alone.get(), nullptr});
  check(alone == got_entropy, name + ": entropy alone");
  gather_logprobs(rows, nullptr, 0.7, GatherOutputs{});
}

template <class Call>
void throws(const std::string& name, ErrorCode code, const std::string& part, Call call) {
  std::string got = "nothing";
  try {
    call();
  } catch (const Error& error) {
    if (error.code() == code && std::string(error.what()).find(part) != std::string::npos) return check(true, name);
    got = error.what();
  }
  check(false, name + ": expected \"" + part + "\", got " + got);
}

void errors(const std::string& isa) {
  const auto with = [&](const std::string& name, ErrorCode code, const std::string& part, auto change) {
    Case c(7, 33, 0, DType::kFloat32, Penalty::kForward, Surrogate::kGspo);
    Matrix grad(7, 33, 0, DType::kFloat32);
    Outputs outputs;
    outputs.grad_logits = grad.storage.get();
    outputs.grad_stride = grad.stride;
    change(c, outputs);
    throws(isa + ": " + name, code, part, [&] { policy_loss(c.batch, c.objective, outputs); });
  };
  const auto invalid = ErrorCode::kInvalidArgument, bad = ErrorCode::kNonFinite;
  with("token id", invalid, "tokenIds[6] is 33", [](Case& c, Outputs&) { c.ids[6] = 33; });
  with("phi", invalid, "refWeights[4]", [](Case& c, Outputs&) { c.phi[4] = 1.5F; });
  with("offsets", invalid, "sequenceOffsets[2]", [](Case& c, Outputs&) { c.offsets[2] = 8; });
  with("stride", invalid, "row stride is 32", [](Case& c, Outputs&) { c.batch.logits_stride = 32; });
  with("no ids", invalid, "tokenIds is missing", [](Case& c, Outputs&) { c.batch.token_ids = nullptr; });
  with("overlap", invalid, "overlaps logits", [](Case& c, Outputs& outputs) {
    outputs.grad_logits = c.logits.storage.get() + 4;
  });
  with("NaN in the last word", bad, "logits[6, 32] is NaN",
       [](Case& c, Outputs&) { c.logits.set(6, 32, std::nan("")); });
  with("the first of two bad rows", bad, "row 1: refLogits[1, 0]", [](Case& c, Outputs&) {
    c.ref.set(4, 0, std::nan(""));
    c.ref.set(1, 0, std::nan(""));
  });
  const Case masked(3, 9, 0, DType::kFloat16, Penalty::kNone, Surrogate::kClip);
  LogitRows rows{3, 9, DType::kFloat16, masked.batch.logits, 9};
  throws(isa + ": gather", invalid, "tokenIds[2]", [&] {
    Exact<float> out(3);
    gather_logprobs(rows, masked.ids.get(), 1, {out.get(), nullptr, nullptr});
  });
  throws(isa + ": gather of NaN", bad, "row 2", [&] {
    Exact<float> out(3);
    gather_logprobs(rows, nullptr, 1, {nullptr, out.get(), nullptr});
  });
  Batch empty;
  empty.vocab_size = empty.logits_stride = 5;
  check(policy_loss(empty, Objective{}, Outputs{}).tokens == 0, isa + ": no rows");
}

/// Callers on several threads, the pool resized under them, calls cancelled from outside, bad logits: whoever is not
/// cancelled gets the bits that a single thread gets.
void threads() {
  // Enough words for several items of work a call (kGrain in cpu/loss.cpp).
  const Case good(40, 4001, 0, DType::kFloat32, Penalty::kForward, Surrogate::kClip);
  Case bad(40, 4001, 0, DType::kFloat32, Penalty::kForward, Surrogate::kGspo);
  for (const int row : {9, 21, 36}) bad.ref.set(row, 4000, std::nan(""));
  const auto run = [](const Case& c, Matrix& grad, PerToken& tokens, const Control* control) {
    Outputs outputs;
    outputs.grad_logits = grad.storage.get();
    outputs.grad_stride = grad.stride;
    tokens.attach(outputs);
    return policy_loss(c.batch, c.objective, outputs, control).loss;
  };
  set_kernel_threads(1);
  Matrix want(40, 4001, 0, DType::kFloat32);
  PerToken want_tokens(40);
  const double want_loss = run(good, want, want_tokens, nullptr);

  std::atomic<bool> done{false};
  std::thread resizing([&] {
    for (int n = 0; !done; n = (n + 1) % 8) {
      set_kernel_threads(n);
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
  });
  std::atomic<int> aborted{0};
  const auto caller = [&](int id) {
    Matrix grad(40, 4001, 0, DType::kFloat32);
    PerToken tokens(40);
    for (int i = 0; i < 12; ++i) {
      const std::string name = "caller " + std::to_string(id) + ", call " + std::to_string(i);
      if (i % 3 == 1) {
        throws(name, ErrorCode::kNonFinite, "row 9: refLogits[9, 4000]",
               [&] { run(bad, grad, tokens, nullptr); });
        continue;
      }
      Control control;
      std::thread cancelling;
      if (i % 3 == 2) {
        // Before, during or after the call.
        cancelling = std::thread([&control, i] {
          std::this_thread::sleep_for(std::chrono::microseconds(i * i * 10));
          control.cancelled = true;
        });
      }
      bool whole = true;
      double loss = 0;
      try {
        loss = run(good, grad, tokens, &control);
      } catch (const Error& error) {
        whole = false;
        check(error.code() == ErrorCode::kAborted && i % 3 == 2, name + ": " + error.what());
        ++aborted;
      }
      if (cancelling.joinable()) cancelling.join();
      if (whole)
        check(loss == want_loss && grad.storage == want.storage && tokens == want_tokens, name + ": other bits");
    }
    Control cancelled;
    cancelled.cancelled = true;
    throws("cancelled before", ErrorCode::kAborted, "aborted", [&] { run(good, grad, tokens, &cancelled); });
  };
  std::vector<std::thread> callers;
  for (int id = 0; id < 4; ++id) callers.emplace_back(caller, id);
  for (auto& thread : callers) thread.join();
  done = true;
  resizing.join();
  // Two threads that fail at the same time: one of the errors comes out, the other items are not begun.
  set_kernel_threads(4);
  std::atomic<int> inside{0};
  throws("failures at once", ErrorCode::kAborted, "both", [&] {
    parallel_for(64, [&](std::int64_t) {
      ++inside;
      while (inside < 2) std::this_thread::yield();
      throw Error(ErrorCode::kAborted, "both");
    });
  });
  check(inside >= 2 && inside <= 4, "failures at once: " + std::to_string(inside) + " items were begun");
  set_kernel_threads(0);
  std::printf("threads done; %d calls were cancelled under way\n", aborted.load());
}

}  // namespace

int main() {
  set_kernel_threads(4);
  const Surrogate surrogates[] = {Surrogate::kClip, Surrogate::kCispo, Surrogate::kSapo, Surrogate::kGspo};
  for (const auto& isa : available_isas()) {
    select_isa(isa);
    for (const auto dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
      const std::string type = isa + " " + dtype_name(dtype);
      for (const std::int64_t vocab_size : {1, 2, 7, 8, 15, 17, 33, 64, 65, 127, 1003}) {
        const std::string name = type + ", V = " + std::to_string(vocab_size);
        for (int i = 0; i <= static_cast<int>(Penalty::kReverseFull); ++i) {
          const auto penalty = static_cast<Penalty>(i);
          const auto surrogate = surrogates[(i + vocab_size) % 4];
          Case c(7, vocab_size, i % 2 ? 3 : 0, dtype, penalty, surrogate);
          losses(name + ", " + penalty_name(penalty) + ", " + surrogate_name(surrogate), c);
        }
        gathers(name, vocab_size, dtype);
      }
      // Beyond 4 MiB the gradient is written past the caches, by other instructions.
      Case large(dtype == DType::kFloat32 ? 1050 : 2100, 1001, 1, dtype, Penalty::kForward, Surrogate::kClip);
      losses(type + ", streamed", large);
    }
    errors(isa);
    std::printf("%s done\n", isa.c_str());
  }
  select_isa("");
  threads();
  std::printf("%d passed, %d failed\n", passed.load(), failed.load());
  return failed ? 1 : 0;
}
