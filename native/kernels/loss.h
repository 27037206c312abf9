// The objective's loss and gradient for full logits (docs/objective.md), and plain log-prob gathering.
#pragma once

#include "control.h"
#include "objective.h"

namespace rapo {

/// loss = -sum_t n_t (w_t g_t - alpha D_t + beta H_t) and, if wanted, its gradient with respect to the
/// policy's raw logits, and the per-token values. Every normaliser is a log-sum-exp with the maximum
/// subtracted; that of the phi-reweighted reference takes one pass over the reference.
///
/// The instruction set is chosen at run time (cpu/select.h). Results are the same bits for any number of
/// threads. Everything but the logits' values is checked before anything is written. A NaN among the logits
/// is found while other rows are being written, so that after kNonFinite the outputs hold unspecified values.
/// Throws Error: kInvalidArgument (shape, token id, weight out of range), kNonFinite (names the first such
/// row), kAborted.
Metrics policy_loss(const Batch& batch, const Objective& objective, const Outputs& outputs,
                    const Control* control = nullptr);

/// Rows of logits, each a distribution over V tokens.
struct LogitRows {
  std::int64_t rows = 0;        // N
  std::int64_t vocab_size = 0;  // V
  DType dtype = DType::kFloat32;
  const void* data = nullptr;               // (N, V), before division by the temperature
  std::int64_t stride = 0;                  // elements between rows; >= V
  const std::int64_t* row_names = nullptr;  // (N) the numbers of the rows in errors; null: 0, 1, ...

  std::int64_t name_of(std::int64_t row) const { return row_names ? row_names[row] : row; }
};

/// Where gather_logprobs writes; a null pointer means "not wanted".
struct GatherOutputs {
  float* logprobs = nullptr;     // (N) log p(token_ids[i]); -inf where the token's logit is
  float* entropy = nullptr;      // (N)
  float* log_sum_exp = nullptr;  // (N) of logits / temperature
};

/// The log-prob of one token per row, the entropy and the log-sum-exp under softmax(logits / temperature), in
/// one pass. token_ids (N) may be null if logprobs are not wanted. Throws as policy_loss does.
void gather_logprobs(const LogitRows& logits, const std::int32_t* token_ids, double temperature,
                     const GatherOutputs& outputs, const Control* control = nullptr);

namespace reference {

/// The oracles: the same functions as plain loops in double precision. They are slow and serve tests and
/// readers. Logits and gradient may be kFloat64 here.
Metrics policy_loss(const Batch& batch, const Objective& objective, const Outputs& outputs);
void gather_logprobs(const LogitRows& logits, const std::int32_t* token_ids, double temperature,
                     const GatherOutputs& outputs);

}  // namespace reference
}  // namespace rapo
