// The oracle: docs/objective.md as plain loops in double precision, one formula per line.
#include <cmath>
#include <limits>
#include <vector>

#include "dtypes.h"
#include "loss.h"
#include "sequence.h"
#include "token.h"
#include "validate.h"

namespace rapo::reference {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// log_softmax(weight * logits / temperature). With weight 0 the result is uniform, words with logit -inf
/// included.
std::vector<double> log_softmax(const char* field, std::int64_t row, const void* logits, DType dtype,
                                std::int64_t vocab_size, double weight, double temperature,
                                double* lse = nullptr) {
  std::vector<double> out(static_cast<std::size_t>(vocab_size));
  double max = -kInfinity;
  bool bad = false;
  for (std::int64_t v = 0; v < vocab_size; ++v) {
    const double z = load_scalar(logits, dtype, v) / temperature;
    bad = bad || std::isnan(z);
    max = z > max ? z : max;
    out[v] = z;
  }
  if (bad || std::isinf(max)) throw_bad_logits(field, row, logits, dtype, vocab_size);
  double sum = 0;
  for (auto& z : out) {
    z = weight == 0 ? 0 : weight * (z - max);
    sum += std::exp(z);
  }
  for (auto& z : out) z -= std::log(sum);
  if (lse) *lse = max + std::log(sum);
  return out;
}

/// a * b with 0 * -inf = 0.
double weighted(double a, double b) { return a == 0 ? 0 : a * b; }

double entropy_of(const std::vector<double>& l) {
  double entropy = 0;
  for (const double x : l) entropy -= weighted(std::exp(x), x);
  return entropy;
}

/// The policy's log-probs of the sampled tokens; 0 in masked rows.
std::vector<double> token_logprobs(const Batch& batch, double temperature) {
  std::vector<double> logprobs(static_cast<std::size_t>(batch.rows));
  for (std::int64_t i = 0; i < batch.rows; ++i) {
    if (batch.token_weights[i] == 0) continue;
    const void* row = row_of(batch.logits, batch.dtype, batch.logits_stride, i);
    logprobs[i] =
        log_softmax("logits", i, row, batch.dtype, batch.vocab_size, 1, temperature)[batch.token_ids[i]];
  }
  return logprobs;
}

/// KL(a || b) of two log-distributions.
double divergence(const std::vector<double>& a, const std::vector<double>& b) {
  double kl = 0;
  for (std::size_t v = 0; v < a.size(); ++v) kl += weighted(std::exp(a[v]), a[v] - b[v]);
  return kl;
}

}  // namespace

Metrics policy_loss(const Batch& given, const Objective& objective, const Outputs& outputs) {
  validate_loss(given, objective, outputs, true);
  Batch batch = given;
  std::vector<double> sequence_ratios;
  if (batch.sequence_offsets) {
    sequence_ratios = sequence_log_ratios(batch, token_logprobs(batch, objective.temperature));
    batch.sequence_log_ratios = sequence_ratios.data();
  }
  const double tau = objective.temperature, alpha = objective.kl_coef, beta = objective.entropy_coef;
  Metrics metrics;
  for (std::int64_t i = 0; i < batch.rows; ++i) {
    const bool masked = batch.token_weights[i] == 0;
    const auto V = batch.vocab_size;
    void* grad = outputs.grad_logits ? row_of(outputs.grad_logits, outputs.grad_dtype, outputs.grad_stride, i)
                                     : nullptr;
    RowSums sums;
    Token token;
    std::vector<double> l, q;
    const std::int64_t a = masked ? 0 : batch.token_ids[i];
    if (!masked) {
      l = log_softmax("logits", i, row_of(batch.logits, batch.dtype, batch.logits_stride, i), batch.dtype, V,
                      1, tau);
      sums.logprob = l[a];
      sums.entropy = entropy_of(l);
      if (objective.penalty != Penalty::kNone) {
        const double phi = batch.ref_weights ? batch.ref_weights[i] : 1;
        q = log_softmax("refLogits", i, row_of(batch.ref_logits, batch.dtype, batch.ref_stride, i),
                        batch.dtype, V, phi, tau);
        sums.ref_logprob = q[a];
        if (objective.penalty == Penalty::kForwardFull) sums.full_kl = divergence(q, l);
        if (objective.penalty == Penalty::kReverseFull) sums.full_kl = divergence(l, q);
      }
      token = evaluate_token(batch, objective, i, sums);
    }
    write_token(outputs, i, sums, token);
    add_token(metrics, token);
    for (std::int64_t v = 0; grad && v < V; ++v) {
      double dj = 0;  // d J / d z_v
      if (!masked) {
        const double p = std::exp(l[v]);
        dj = token.slope * ((v == a ? 1 : 0) - p) - beta * weighted(p, l[v] + sums.entropy);
        if (objective.penalty == Penalty::kForwardFull) dj -= alpha * (p - std::exp(q[v]));
        if (objective.penalty == Penalty::kReverseFull) dj -= alpha * weighted(p, l[v] - q[v] - sums.full_kl);
      }
      store_scalar(grad, outputs.grad_dtype, v, masked ? 0 : -batch.token_weights[i] / tau * dj);
    }
  }
  return metrics;
}

void gather_logprobs(const LogitRows& logits, const std::int32_t* token_ids, double temperature,
                     const GatherOutputs& outputs) {
  validate_gather(logits, token_ids, temperature, outputs, true);
  for (std::int64_t i = 0; i < logits.rows; ++i) {
    double lse = 0;
    const auto l = log_softmax("logits", i, row_of(logits.data, logits.dtype, logits.stride, i), logits.dtype,
                               logits.vocab_size, 1, temperature, &lse);
    if (outputs.logprobs) outputs.logprobs[i] = static_cast<float>(l[token_ids[i]]);
    if (outputs.entropy) outputs.entropy[i] = static_cast<float>(entropy_of(l));
    if (outputs.log_sum_exp) outputs.log_sum_exp[i] = static_cast<float>(lse);
  }
}

}  // namespace rapo::reference
