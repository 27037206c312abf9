// Every instruction set of the machine against the oracle, without Node: what `npm run test:arm64` runs in an emulator.
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "cpu/select.h"
#include "dtypes.h"
#include "loss.h"
#include "penalty.h"

namespace {

using namespace rapo;

constexpr double kInf = std::numeric_limits<double>::infinity();
int passed = 0, failed = 0;

void check(bool ok, const std::string& what) {
  ++(ok ? passed : failed);
  if (!ok) std::printf("FAILED %s\n", what.c_str());
}

enum Kind { kNormal, kWide, kRising, kEqual, kSomeInf, kKinds };

/// One row of each kind, stored in dtype.
struct Case {
  Batch batch;
  std::vector<double> logits, ref;  // storage of any dtype; a double is large enough for each
  std::vector<std::int32_t> ids;
  std::vector<float> weights, advantages, phi, old;

  Case(DType dtype, std::int64_t vocab_size, Penalty penalty, unsigned seed)
      : logits(static_cast<std::size_t>(vocab_size * kKinds)), ref(logits.size()) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal(0, 2);
    for (std::int64_t row = 0; row < kKinds; ++row) {
      const auto token = static_cast<std::int32_t>(random() % static_cast<unsigned>(vocab_size));
      for (std::int64_t v = 0; v < vocab_size; ++v) {
        double z = normal(random), u = z + normal(random) / 4;
        if (row == kWide) z *= 20, u = z;  // e^x of most is 0 beside that of the largest
        if (row == kRising) z = static_cast<double>(v) / 64, u = z + 0.25;  // every block raises the maximum
        if (row == kEqual) z = u = 3;
        if (row == kSomeInf && v % 3 == 0 && v != token) z = u = -kInf;
        store_scalar(logits.data(), dtype, row * vocab_size + v, z);
        store_scalar(ref.data(), dtype, row * vocab_size + v, u);
      }
      ids.push_back(token);
      weights.push_back(0.25F);
      advantages.push_back(row % 2 ? 1.5F : -0.75F);
      phi.push_back(row == kSomeInf || row % 2 ? 1 : 0.3F);
    }
    batch.rows = kKinds;
    batch.vocab_size = batch.logits_stride = batch.ref_stride = vocab_size;
    batch.dtype = dtype;
    batch.logits = logits.data();
    if (penalty != Penalty::kNone) batch.ref_logits = ref.data();
    batch.token_ids = ids.data();
    batch.token_weights = weights.data();
    batch.advantages = advantages.data();
    if (traits(penalty).reweighted) batch.ref_weights = phi.data();
  }
};

/// Roundings of float32 that a result may be off: of sums of 64 terms a float, taken apart and put together, and of the
/// handful of operations around them. What bench/loss.ts asks for, too.
constexpr double kRelative = 64 * 0x1p-24;

void compare(const std::string& name, DType dtype, std::int64_t vocab_size, Penalty penalty) {
  const Case c(dtype, vocab_size, penalty, static_cast<unsigned>(vocab_size) + 1);
  Objective objective;
  objective.penalty = penalty;
  objective.kl_coef = penalty == Penalty::kNone ? 0 : 0.3;
  objective.entropy_coef = 0.05;
  objective.temperature = 0.8;
  const auto size = static_cast<std::size_t>(vocab_size * kKinds);
  std::vector<float> want(size), want_kl(kKinds), got_kl(kKinds);
  std::vector<double> got(size);
  Outputs outputs;
  outputs.grad_logits = want.data();
  outputs.grad_stride = vocab_size;
  outputs.kl = want_kl.data();
  const double want_loss = reference::policy_loss(c.batch, objective, outputs).loss;
  outputs.grad_logits = got.data();
  outputs.grad_dtype = dtype;
  outputs.kl = got_kl.data();
  const double loss = policy_loss(c.batch, objective, outputs).loss;

  double scale = 1;  // of the loss: its largest term, or the logits that cancel in one
  bool same = true;
  std::string where;
  const double rounding = dtype == DType::kFloat32 ? 0 : dtype == DType::kBFloat16 ? 0x1p-8 : 0x1p-11;
  // Half of float16's smallest number; the kernels' e^x is 0 where it is no normal float.
  const double smallest = dtype == DType::kFloat16 ? 0x1p-25 : 0x1p-126;
  for (std::int64_t row = 0; row < kKinds; ++row) {
    double largest = objective.kl_coef * 0.25, spread = 1;
    for (std::int64_t v = 0; v < vocab_size; ++v) {
      largest = std::fmax(largest, std::fabs(static_cast<double>(want[row * vocab_size + v])));
      const double z = load_scalar(c.batch.logits, dtype, row * vocab_size + v);
      if (std::isfinite(z)) spread = std::fmax(spread, std::fabs(z));
    }
    scale = std::fmax(scale, std::fmax(spread, std::fabs(static_cast<double>(want_kl[row]))));
    if (!(std::fabs(static_cast<double>(got_kl[row] - want_kl[row])) <= kRelative * scale)) same = false;
    for (std::int64_t v = 0; v < vocab_size; ++v) {
      const double g = load_scalar(got.data(), dtype, row * vocab_size + v);
      const double w = static_cast<double>(want[row * vocab_size + v]);
      if (std::fabs(g - w) <= kRelative * spread * largest + rounding * std::fabs(w) + smallest) continue;
      char text[96];
      std::snprintf(text, sizeof text, ": row %d, word %d is %g, want %g", static_cast<int>(row),
                    static_cast<int>(v), g, w);
      if (same) where = text;
      same = false;
    }
  }
  check(same && std::fabs(loss - want_loss) <= kRelative * kKinds * scale, name + where);
}

void refuses_nan(const std::string& name, DType dtype, std::int64_t at) {
  Case c(dtype, 1500, Penalty::kNone, 1);
  store_scalar(c.logits.data(), dtype, at, std::nan(""));
  bool thrown = false;
  try {
    policy_loss(c.batch, Objective{}, Outputs{});
  } catch (const Error& error) {
    thrown = error.code() == ErrorCode::kNonFinite;
  }
  check(thrown, name);
}

}  // namespace

int main() {
  for (const auto& isa : available_isas()) {
    select_isa(isa);
    for (const auto dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
      const std::string type = isa + " " + dtype_name(dtype);
      for (const std::int64_t vocab_size : {1, 3, 17, 64, 1000, 5001}) {
        for (int i = 0; i <= static_cast<int>(Penalty::kReverseFull); ++i) {
          const auto penalty = static_cast<Penalty>(i);
          compare(type + ", V = " + std::to_string(vocab_size) + ", " + penalty_name(penalty), dtype, vocab_size,
                  penalty);
        }
      }
      for (const int at : {0, 5, 700, 1499}) refuses_nan(type + ", NaN at " + std::to_string(at), dtype, at);
    }
    std::printf("%s done\n", isa.c_str());
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed ? 1 : 0;
}
