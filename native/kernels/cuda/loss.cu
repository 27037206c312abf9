// The objective on the device: checks, the sums of gspo's sequences, loss and gradient row by row, metrics.
#include "../sequence.h"
#include "../row_fault.h"
#include "launch.h"

namespace rapo::cuda {
namespace {

/// What every kernel of a call is told.
struct LossCall {
  Batch batch;
  Objective objective;
  Outputs outputs;
  Token* tokens;   // (N)
  double* ratios;  // (N) gspo's log-ratios; first the log-probs they are made from
  Report* report;
};

RAPO_DEVICE std::int64_t global_thread() {
  return static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

/// Everything but the logits. One thread a row, and one a sequence.
__global__ void check_entries(const __grid_constant__ LossCall call) {
  const Batch& b = call.batch;
  const std::int64_t i = global_thread();
  if (i < b.rows) {
    const RowFault fault = row_fault(b, call.objective, i);
    if (fault != RowFault::kNone) note_fault(&call.report->status.invalid, i, static_cast<int>(fault));
  }
  if (!b.sequence_offsets || i >= b.sequences) return;
  const std::int64_t begin = b.sequence_offsets[i], end = b.sequence_offsets[i + 1];
  if (begin > end || begin < 0 || end > b.rows || (i == 0 && begin != 0) ||
      (i == b.sequences - 1 && end != b.rows)) {
    note_fault(&call.report->status.invalid, i, kFaultOffsets);
    return;
  }
  const std::int64_t first = first_unmasked(b, begin, end);
  for (std::int64_t row = first; row < end; ++row) {
    if (b.token_weights[row] == 0) continue;
    if (!same_entry(b.token_weights, row, first) || !same_entry(b.advantages, row, first) ||
        !same_entry(b.policy_weights, row, first)) {
      note_fault(&call.report->status.invalid, row, kFaultSequence);
    }
  }
}

RAPO_DEVICE bool stopped(const LossCall& call) { return call.report->status.invalid != kNoFault; }

/// gspo: each row's log-prob, for the mean over its sequence.
template <class In>
__global__ void __launch_bounds__(kRowThreads) row_logprobs(const __grid_constant__ LossCall call) {
  if (stopped(call)) return;
  const Batch& b = call.batch;
  const auto scale = static_cast<float>(1 / call.objective.temperature);
  const float k = in_powers_of_two(scale);
  for (std::int64_t i = blockIdx.x; i < b.rows; i += gridDim.x) {
    if (b.token_weights[i] == 0) continue;
    const In* row = typed_row<In>(b.logits, b.logits_stride, i);
    const RowStats s = block_stats(read_row<In, true>(row, b.vocab_size, k), k);
    if (threadIdx.x == 0) {
      call.ratios[i] = log_prob(s, Element<In>::widen(load1(row + b.token_ids[i])), scale);
      if (!usable(s)) note_fault(&call.report->status.non_finite, i, static_cast<int>(DataFault::kLogits));
    }
    __syncthreads();
  }
}

/// gspo: the mean over each sequence, written over the log-probs. One thread a sequence, in the order of its rows.
__global__ void sequence_means(const __grid_constant__ LossCall call) {
  if (stopped(call)) return;
  const Batch& b = call.batch;
  const std::int64_t s = global_thread();
  if (s >= b.sequences) return;
  const std::int64_t begin = b.sequence_offsets[s], end = b.sequence_offsets[s + 1];
  const double mean = mean_log_ratio(b, call.ratios, begin, end);
  for (std::int64_t i = begin; i < end; ++i) call.ratios[i] = mean;
}

/// With bad logits the rows of their sequence have no ratio: the loss is not worth computing, and its faults would
/// hide the one that caused them.
__global__ void stop_if_not_finite(const __grid_constant__ LossCall call) {
  if (call.report->status.non_finite != kNoFault && !stopped(call)) call.report->status.invalid = kStopped;
}

/// The sums over row i, in thread 0; and in `fault` what is wrong with the logits.
template <class In, bool kPair>
RAPO_DEVICE PairStats read_sums(const LossCall& call, std::int64_t i, DataFault& fault) {
  const Batch& b = call.batch;
  const auto scale = static_cast<float>(1 / call.objective.temperature);
  const In* row = typed_row<In>(b.logits, b.logits_stride, i);
  const float k = in_powers_of_two(scale), ref_scale = ref_scale_of(b, call.objective, i);
  PairStats s{{0, 0, 0}, {0, 0, 0}, 0, 0};
  fault = DataFault::kNone;
  const bool reference = b.ref_logits != nullptr, uniform = reference && ref_scale == 0;
  if (reference && (!kPair || uniform)) {
    // A uniform reference's own row is still read, since a NaN in it is an error all the same.
    const In* ref = typed_row<In>(b.ref_logits, b.ref_stride, i);
    const float ref_k = in_powers_of_two(uniform ? scale : ref_scale);
    s.r = block_stats(read_row<In, true>(ref, b.vocab_size, ref_k), ref_k);
    if (!usable(s.r)) fault = DataFault::kRefLogits;
    __syncthreads();
  }
  if constexpr (kPair) {
    const In* ref = uniform ? row : typed_row<In>(b.ref_logits, b.ref_stride, i);
    const float ref_k = in_powers_of_two(uniform ? kFlat : ref_scale);
    s = block_stats(read_pair<In>(row, ref, b.vocab_size, k, ref_k), k, ref_k);
    if (fault == DataFault::kNone && !uniform && !usable(s.r)) fault = DataFault::kRefLogits;
    if (!usable(s.p) && !(uniform && fault == DataFault::kRefLogits)) fault = DataFault::kLogits;
  } else {
    s.p = block_stats(read_row<In, false>(row, b.vocab_size, k), k);
    if (fault == DataFault::kNone && !usable(s.p)) fault = DataFault::kLogits;
  }
  return s;
}

/// What thread 0 does with the sums: the row's values, and how its gradient is to be written.
template <class In>
RAPO_DEVICE RowPlan finish_row(const LossCall& call, std::int64_t i, const PairStats& s, DataFault fault) {
  const Batch& b = call.batch;
  const std::int64_t a = b.token_ids[i];
  RowSums sums;
  Token token;
  if (fault == DataFault::kNone) {
    const float z = Element<In>::widen(load1(typed_row<In>(b.logits, b.logits_stride, i) + a));
    const float u =
        b.ref_logits ? Element<In>::widen(load1(typed_row<In>(b.ref_logits, b.ref_stride, i) + a)) : 0;
    sums = row_sums(s, b, call.objective, i, z, u);
    token = token_of(b, call.objective, i, sums);
    if (token.fault == TokenFault::kRuledOut) fault = DataFault::kRuledOut;
    if (token.fault == TokenFault::kInfinitePenalty) fault = DataFault::kInfinitePenalty;
  }
  RowPlan plan = {};
  if (fault != DataFault::kNone) {
    note_fault(&call.report->status.non_finite, i, static_cast<int>(fault));
    token = Token{};
  } else if (call.outputs.grad_logits) {
    plan.terms = gradient_terms(s, b, call.objective, i, sums, token);
    plan.terms.scale = in_powers_of_two(plan.terms.scale);
    plan.terms.ref_scale = in_powers_of_two(plan.terms.ref_scale == 0 ? kFlat : plan.terms.ref_scale);
    plan.terms.linear *= static_cast<float>(kLn2);
    plan.terms.cross *= static_cast<float>(kLn2);
    plan.token = a;
    plan.at_token = static_cast<float>(gradient_at_token(b, call.objective, i, sums, token));
    plan.write = 1;
  }
  write_token(call.outputs, i, sums, token);
  call.tokens[i] = token;
  return plan;
}

/// Rows of a block, one after another. Reads a row of the policy twice, the second time from the second-level
/// cache, and one of the reference once (twice where it takes part in the gradient), and writes the gradient once.
template <class In, class Out, bool kPair>
__global__ void __launch_bounds__(kRowThreads) loss_rows(const __grid_constant__ LossCall call) {
  if (stopped(call)) return;
  const Batch& b = call.batch;
  const auto shared_plan = shared_memory<RowPlan>(kSharedPlan);
  for (std::int64_t i = blockIdx.x; i < b.rows; i += gridDim.x) {
    Out* out = static_cast<Out*>(call.outputs.grad_logits) + i * call.outputs.grad_stride;
    if (b.token_weights[i] == 0) {
      if (call.outputs.grad_logits) zero_row(out, b.vocab_size);
      if (threadIdx.x == 0) {
        write_token(call.outputs, i, RowSums{}, Token{});
        call.tokens[i] = Token{};
      }
      continue;
    }
    DataFault fault;
    const PairStats s = read_sums<In, kPair>(call, i, fault);
    if (threadIdx.x == 0) shared_plan[0] = finish_row<In>(call, i, s, fault);
    __syncthreads();
    const RowPlan plan = shared_plan[0];
    if (plan.write) {
      const In* row = typed_row<In>(b.logits, b.logits_stride, i);
      // A uniform reference has no logits of its own: at its scale any finite row is a constant.
      const bool own = kPair && ref_scale_of(b, call.objective, i) != 0;
      write_row<In, Out, kPair>(row, own ? typed_row<In>(b.ref_logits, b.ref_stride, i) : row, out, b.vocab_size,
                                plan);
    }
  }
}

constexpr int kMetricsThreads = 256;

/// One block; each thread adds up every kMetricsThreads-th row, then pairs of threads.
__global__ void __launch_bounds__(kMetricsThreads) add_metrics(const __grid_constant__ LossCall call) {
  const auto partial = shared_memory<Metrics>(0);
  const int thread = static_cast<int>(threadIdx.x);
  Metrics own;
  if (!stopped(call)) {
    for (std::int64_t i = thread; i < call.batch.rows; i += kMetricsThreads) add_token(own, call.tokens[i]);
  }
  partial[thread] = own;
  for (int step = kMetricsThreads / 2; step > 0; step /= 2) {
    __syncthreads();
    if (thread < step) {
      own.add(partial[thread + step]);
      partial[thread] = own;
    }
  }
  if (thread == 0) call.report->metrics = own;
}

template <class In, class Out, bool kPair>
cudaError_t launch_rows(int device, const LossCall& call, cudaStream_t stream) {
  const Batch& b = call.batch;
  Launch shape{0, row_threads(b.vocab_size, b.dtype), kSharedRows, 1, stream};
  const std::int64_t row_bytes = b.vocab_size * static_cast<std::int64_t>(dtype_size(b.dtype)) * (kPair ? 2 : 1);
  RAPO_TRY(row_blocks(loss_rows<In, Out, kPair>, device, b.rows, row_bytes, shape));
  return launch(loss_rows<In, Out, kPair>, shape, call);
}

template <class In>
cudaError_t launch_loss(int device, const LossCall& call, cudaStream_t stream) {
  const bool own = call.outputs.grad_dtype == call.batch.dtype || !call.outputs.grad_logits;
  if (is_full(call.objective.penalty)) {
    return own ? launch_rows<In, In, true>(device, call, stream)
               : launch_rows<In, float, true>(device, call, stream);
  }
  return own ? launch_rows<In, In, false>(device, call, stream)
             : launch_rows<In, float, false>(device, call, stream);
}

template <class In>
cudaError_t launch_logprobs(int device, const LossCall& call, cudaStream_t stream) {
  const Batch& b = call.batch;
  Launch shape{0, row_threads(b.vocab_size, b.dtype), kSharedRows, 1, stream};
  RAPO_TRY(row_blocks(row_logprobs<In>, device, b.rows, 1, shape));
  return launch(row_logprobs<In>, shape, call);
}

}  // namespace

std::size_t loss_workspace(std::int64_t rows) {
  return static_cast<std::size_t>(rows) * (sizeof(Token) + sizeof(double));
}

cudaError_t policy_loss(int device, const Batch& batch, const Objective& objective, const Outputs& outputs,
                        void* workspace, Report* report, cudaStream_t stream) {
  static_assert(sizeof(RowPlan) <= kSharedRows - kSharedPlan && sizeof(Token) % sizeof(double) == 0, "layout");
  auto* tokens = static_cast<Token*>(workspace);
  LossCall call{batch, objective, outputs, tokens, reinterpret_cast<double*>(tokens + batch.rows), report};
  RAPO_TRY(cudaMemsetAsync(&report->status, 0xff, sizeof(Status), stream));
  if (batch.rows > 0) {
    const bool gspo = batch.sequence_offsets != nullptr;
    RAPO_TRY(launch(check_entries, one_thread_each(std::max(batch.rows, batch.sequences), stream), call));
    if (gspo) {
      if (batch.old_logprobs) {
        RAPO_TRY(for_dtype(batch.dtype, [&](auto element) {
          return launch_logprobs<decltype(element)>(device, call, stream);
        }));
      }
      RAPO_TRY(launch(sequence_means, one_thread_each(batch.sequences, stream), call));
      RAPO_TRY(launch(stop_if_not_finite, Launch{1, 1, 0, 1, stream}, call));
      call.batch.sequence_log_ratios = call.ratios;
    }
    RAPO_TRY(for_dtype(batch.dtype, [&](auto element) {
      return launch_loss<decltype(element)>(device, call, stream);
    }));
  }
  const int shared = kMetricsThreads * static_cast<int>(sizeof(Metrics));
  return launch(add_metrics, Launch{1, kMetricsThreads, shared, 1, stream}, call);
}

}  // namespace rapo::cuda
