// The objective on the device: checks, the sums of gspo's sequences, loss and gradient row by row, metrics.
#include "../row_fault.h"
#include "../sequence.h"
#include "launch.h"

namespace rapo::cuda {
namespace {

RAPO_DEVICE std::int64_t global_thread() {
  return static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

/// Checks everything but the logits. One thread per row and one per sequence.
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
    if (!alike(b, row, first)) note_fault(&call.report->status.invalid, row, kFaultSequence);
  }
}

RAPO_DEVICE bool stopped(const LossCall& call) { return call.report->status.invalid != kNoFault; }

/// For gspo: writes each row's log-prob, of which the next kernel takes the mean over the sequence.
template <class In>
__global__ void __launch_bounds__(kRowThreads) row_logprobs(const __grid_constant__ LossCall call) {
  if (stopped(call)) return;
  const Batch& b = call.batch;
  const auto scale = static_cast<float>(1 / call.objective.temperature);
  const float k = in_powers_of_two(scale);
  for (std::int64_t i = blockIdx.x; i < b.rows; i += gridDim.x) {
    if (b.token_weights[i] == 0) continue;
    const In* row = typed_row<In>(b.logits, b.logits_stride, i);
    const RowStats s = block_stats(read_row<In, true>(row, b.vocab_size, k, {}, no_slots()), k);
    if (threadIdx.x == 0) {
      call.ratios[i] = log_prob(s, Element<In>::widen(load1(row + b.token_ids[i])), scale);
      if (!usable(s)) {
        note_fault(&call.report->status.non_finite, call.first_row + i, static_cast<int>(DataFault::kLogits));
      }
    }
    __syncthreads();
  }
}

/// For gspo: replaces the log-probs by the mean log-ratio of the sequence. One thread per sequence adds up
/// its rows in order.
__global__ void sequence_means(const __grid_constant__ LossCall call) {
  if (stopped(call)) return;
  const Batch& b = call.batch;
  const std::int64_t s = global_thread();
  if (s >= b.sequences) return;
  const std::int64_t begin = b.sequence_offsets[s], end = b.sequence_offsets[s + 1];
  const double mean = mean_log_ratio(b, call.ratios, begin, end);
  for (std::int64_t i = begin; i < end; ++i) call.ratios[i] = mean;
}

/// Bad logits leave the rows of their sequence without a ratio. The loss is then not computed: its faults
/// would hide the one that caused them.
__global__ void stop_if_not_finite(const __grid_constant__ LossCall call) {
  if (call.report->status.non_finite != kNoFault && !stopped(call)) call.report->status.invalid = kStopped;
}

/// Computes the sums over row i, which thread 0 gets, and in `fault` what is wrong with the logits.
/// kResident: the policy's row, or this block's share of it, is in `slots`.
template <class In, bool kPair, bool kResident>
RAPO_DEVICE PairStats read_sums(const LossCall& call, std::int64_t i, DataFault& fault, Team team,
                                SharedPointer<uint4> slots) {
  const Batch& b = call.batch;
  const auto scale = static_cast<float>(1 / call.objective.temperature);
  const In* row = typed_row<In>(b.logits, b.logits_stride, i);
  const float k = in_powers_of_two(scale), ref_scale = ref_scale_of(b, call.objective, i);
  PairStats s{{0, 0, 0}, {0, 0, 0}, 0};
  fault = DataFault::kNone;
  const bool reference = b.ref_logits != nullptr, uniform = reference && ref_scale == 0;
  if (reference && (!kPair || uniform)) {
    // The logits of a uniform reference are still read, since a NaN in them is an error.
    const In* ref = typed_row<In>(b.ref_logits, b.ref_stride, i);
    const float ref_k = in_powers_of_two(uniform ? scale : ref_scale);
    s.r = block_stats<kResident>(read_row<In, true>(ref, b.vocab_size, ref_k, team, slots), ref_k, team);
    if (!usable(s.r)) fault = DataFault::kRefLogits;
    __syncthreads();
  }
  if constexpr (kResident) async_wait<0>();
  if constexpr (kPair) {
    const In* ref = uniform ? row : typed_row<In>(b.ref_logits, b.ref_stride, i);
    const float ref_k = in_powers_of_two(uniform ? kFlat : ref_scale);
    const auto sums = read_pair<In, kResident>(row, ref, b.vocab_size, k, ref_k, team, slots);
    s = block_stats<kResident>(sums, k, ref_k, call.objective.penalty, team);
    if (fault == DataFault::kNone && !uniform && !usable(s.r)) fault = DataFault::kRefLogits;
    if (!usable(s.p) && !(uniform && fault == DataFault::kRefLogits)) fault = DataFault::kLogits;
  } else {
    s.p = block_stats<kResident>(read_row<In, false, kResident>(row, b.vocab_size, k, team, slots), k, team);
    if (fault == DataFault::kNone && !usable(s.p)) fault = DataFault::kLogits;
  }
  return s;
}

/// Runs in thread 0: turns the sums into the row's values and the plan for its gradient. z and u: the logits
/// of the row's token. first: this thread writes the row's values.
RAPO_DEVICE RowPlan finish_row(const LossCall& call, std::int64_t i, const PairStats& s, DataFault fault,
                               float z, float u, bool first) {
  const Batch& b = call.batch;
  const std::int64_t a = b.token_ids[i];
  RowSums sums;
  Token token;
  if (fault == DataFault::kNone) {
    sums = row_sums(s, b, call.objective, i, z, u);
    token = token_of(b, call.objective, i, sums);
    if (token.fault == TokenFault::kRuledOut) fault = DataFault::kRuledOut;
    if (token.fault == TokenFault::kInfinitePenalty) fault = DataFault::kInfinitePenalty;
  }
  RowPlan plan = {};
  if (fault != DataFault::kNone) {
    note_fault(&call.report->status.non_finite, call.first_row + i, static_cast<int>(fault));
    token = Token{};
  } else if (call.outputs.grad_logits) {
    plan = plan_of(gradient_terms(s, b, call.objective, i, sums, token), call.objective.penalty);
    plan.token = a;
    plan.at_token = static_cast<float>(gradient_at_token(b, call.objective, i, sums, token));
    plan.write = 1;
  }
  if (first) {
    write_token(call.outputs, i, sums, token);
    call.tokens[i] = token;
  }
  return plan;
}

template <class Out>
RAPO_DEVICE Out* gradient_row(const LossCall& call, std::int64_t i) {
  return static_cast<Out*>(call.outputs.grad_logits) + i * call.outputs.grad_stride;
}

/// Writes the zeros of a masked row. One block does it.
template <class Out>
RAPO_DEVICE void mask_row(const LossCall& call, std::int64_t i) {
  if (call.outputs.grad_logits) zero_row(gradient_row<Out>(call, i), call.batch.vocab_size);
  if (threadIdx.x == 0) {
    write_token(call.outputs, i, RowSums{}, Token{});
    call.tokens[i] = Token{};
  }
}

/// Processes one unmasked row.
template <class In, class Out, bool kPair, bool kResident>
RAPO_DEVICE void process_row(const LossCall& call, std::int64_t i, Team team, SharedPointer<uint4> slots) {
  const Batch& b = call.batch;
  const auto shared_plan = shared_memory<RowPlan>(kSharedPlan);
  const In* row = typed_row<In>(b.logits, b.logits_stride, i);
  const In* ref = b.ref_logits ? typed_row<In>(b.ref_logits, b.ref_stride, i) : nullptr;
  float z = 0, u = 0;
  if (threadIdx.x == 0) {
    // Must be read before the sums are done: after that, another block of the cluster may overwrite the
    // logits with its part of the gradient.
    z = Element<In>::widen(load1(row + b.token_ids[i]));
    if (ref) u = Element<In>::widen(load1(ref + b.token_ids[i]));
  }
  DataFault fault;
  const PairStats s = read_sums<In, kPair, kResident>(call, i, fault, team, slots);
  if (threadIdx.x == 0) shared_plan[0] = finish_row(call, i, s, fault, z, u, team.rank == 0);
  __syncthreads();
  const RowPlan plan = shared_plan[0];
  if (!plan.write) return;
  // A uniform reference needs no logits of its own: with its scale any finite row is constant.
  const bool own = kPair && ref_scale_of(b, call.objective, i) != 0;
  write_row<In, Out, kPair, kResident>(row, own ? ref : row, gradient_row<Out>(call, i), b.vocab_size, plan,
                                       team, slots);
}

/// Each block processes rows one after another. It reads a row of the policy twice, the second time from the
/// second-level cache. It reads a row of the reference once, or twice if the gradient needs it, and writes
/// the gradient once.
template <class In, class Out, bool kPair>
__global__ void __launch_bounds__(kRowThreads) loss_rows(const __grid_constant__ LossCall call) {
  if (stopped(call)) return;
  for (std::int64_t i = blockIdx.x; i < call.batch.rows; i += gridDim.x) {
    if (call.batch.token_weights[i] == 0) {
      mask_row<Out>(call, i);
    } else {
      process_row<In, Out, kPair, false>(call, i, {}, no_slots());
    }
  }
}

/// The same with the policy's row in shared memory, so that it is read once. Each block of a cluster keeps a
/// part of the row. A thread starts loading its part of the next row as soon as it has written its part of
/// the current gradient.
template <class In, class Out, bool kPair>
__global__ void __launch_bounds__(kResidentThreads, 2)
    loss_rows_resident(const __grid_constant__ LossCall call, const int blocks) {
  if (stopped(call)) return;
  const Batch& b = call.batch;
  const Team team{cluster_rank(), blocks};
  const std::int64_t step = gridDim.x / blocks, start = blockIdx.x / blocks;
  for (std::int64_t i = start; i < b.rows; i += step) {
    if (team.rank == 0 && b.token_weights[i] == 0) mask_row<Out>(call, i);
  }
  const auto slots = shared_memory<uint4>(kSharedRows);
  const auto unmasked_from = [&](std::int64_t i) {
    while (i < b.rows && b.token_weights[i] == 0) i += step;
    return i;
  };
  const auto fetch = [&](std::int64_t i) {
    if (i < b.rows) fetch_share(typed_row<In>(b.logits, b.logits_stride, i), b.vocab_size, team, slots);
  };
  std::int64_t i = unmasked_from(start);
  fetch(i);
  while (i < b.rows) {
    process_row<In, Out, kPair, true>(call, i, team, slots);
    i = unmasked_from(i + step);
    fetch(i);
  }
  cluster_sync();  // other blocks may still read this block's shared memory
}

constexpr int kMetricsThreads = 256;

/// Runs in one block. Each thread adds up every kMetricsThreads-th row; then the threads' sums are added in
/// pairs.
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

/// The number of blocks in the smallest cluster that holds a row: with two blocks per multiprocessor if
/// possible, otherwise with one. 0 if no cluster holds the row.
int resident_blocks(const DeviceInfo& info, std::int64_t vocab_size, DType dtype, int& shared_bytes) {
  const std::int64_t vectors = vocab_size * static_cast<std::int64_t>(dtype_size(dtype)) / 16;
  const int most = info.major >= 9 ? 8 : 1;
  for (const int to_a_multiprocessor : {2, 1}) {
    const std::int64_t limit =
        info.shared_per_block / to_a_multiprocessor - (to_a_multiprocessor == 2 ? 2048 : 0);
    for (int blocks = 1; blocks <= most; blocks *= 2) {
      const std::int64_t bytes = kSharedRows + (vectors + blocks - 1) / blocks * 16;
      if (bytes > limit) continue;
      shared_bytes = static_cast<int>(bytes);
      return blocks;
    }
  }
  return 0;
}

template <class In, class Out, bool kPair>
cudaError_t launch_rows(int device, const LossCall& call, cudaStream_t stream) {
  const Batch& b = call.batch;
  DeviceInfo info;
  RAPO_TRY(device_info(device, info));
  Launch shape{0, row_threads(b.vocab_size, b.dtype), kSharedRows, 1, stream};
  const std::int64_t row_bytes = b.vocab_size * static_cast<std::int64_t>(dtype_size(b.dtype));
  // If the cache holds the rows of two blocks per multiprocessor between their two reads, no cluster is
  // needed.
  const bool cached = row_bytes * 2 * info.multiprocessors <= info.l2 / 2;
  const int cluster = cached ? 0 : resident_blocks(info, b.vocab_size, b.dtype, shape.shared_bytes);
  if (cluster == 0) {
    RAPO_TRY(row_blocks(loss_rows<In, Out, kPair>, device, b.rows, row_bytes * (kPair ? 2 : 1), shape));
    return launch(loss_rows<In, Out, kPair>, shape, call);
  }
  const auto kernel = loss_rows_resident<In, Out, kPair>;
  // The attribute belongs to the kernel, not to one launch: another thread may be launching it with another
  // size.
  RAPO_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                static_cast<int>(info.shared_per_block)));
  shape.threads = kResidentThreads;
  shape.blocks = shape.cluster = cluster;
  int clusters = 0;
  RAPO_TRY(resident_clusters(kernel, shape, info.multiprocessors, clusters));
  if (clusters == 0) return cudaErrorInvalidConfiguration;
  shape.blocks = cluster * static_cast<int>(std::min<std::int64_t>(b.rows, clusters));
  return launch(kernel, shape, call, cluster);
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

LossCall loss_call(const Batch& batch, const Objective& objective, const Outputs& outputs, void* workspace,
                   Report* report) {
  static_assert(sizeof(RowPlan) <= kSharedRows - kSharedPlan && sizeof(Token) % sizeof(double) == 0,
                "layout");
  auto* tokens = static_cast<Token*>(workspace);
  return {batch, objective, outputs, tokens, reinterpret_cast<double*>(tokens + batch.rows), report, 0};
}

cudaError_t enqueue_checks(const LossCall& call, cudaStream_t stream) {
  const Batch& b = call.batch;
  RAPO_TRY(cudaMemsetAsync(&call.report->status, 0xff, sizeof(Status), stream));
  if (b.rows == 0) return cudaSuccess;
  return launch(check_entries, one_thread_each(std::max(b.rows, b.sequences), stream), call);
}

cudaError_t enqueue_logprobs(int device, const LossCall& call, cudaStream_t stream) {
  if (call.batch.rows == 0) return cudaSuccess;
  return for_dtype(call.batch.dtype,
                   [&](auto element) { return launch_logprobs<decltype(element)>(device, call, stream); });
}

cudaError_t enqueue_sequence_ratios(LossCall& call, cudaStream_t stream) {
  if (call.batch.rows == 0) return cudaSuccess;
  RAPO_TRY(launch(sequence_means, one_thread_each(call.batch.sequences, stream), call));
  RAPO_TRY(launch(stop_if_not_finite, Launch{1, 1, 0, 1, stream}, call));
  call.batch.sequence_log_ratios = call.ratios;
  return cudaSuccess;
}

cudaError_t enqueue_rows(int device, const LossCall& call, cudaStream_t stream) {
  if (call.batch.rows == 0) return cudaSuccess;
  return for_dtype(call.batch.dtype,
                   [&](auto element) { return launch_loss<decltype(element)>(device, call, stream); });
}

cudaError_t enqueue_metrics(const LossCall& call, cudaStream_t stream) {
  const int shared = kMetricsThreads * static_cast<int>(sizeof(Metrics));
  return launch(add_metrics, Launch{1, kMetricsThreads, shared, 1, stream}, call);
}

cudaError_t policy_loss(int device, const Batch& batch, const Objective& objective, const Outputs& outputs,
                        void* workspace, Report* report, cudaStream_t stream) {
  LossCall call = loss_call(batch, objective, outputs, workspace, report);
  RAPO_TRY(enqueue_checks(call, stream));
  if (batch.sequence_offsets) {
    if (batch.old_logprobs) RAPO_TRY(enqueue_logprobs(device, call, stream));
    RAPO_TRY(enqueue_sequence_ratios(call, stream));
  }
  RAPO_TRY(enqueue_rows(device, call, stream));
  return enqueue_metrics(call, stream);
}

}  // namespace rapo::cuda
