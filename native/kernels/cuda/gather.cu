// Log-probs of given tokens, entropies and log-sum-exps on the device: each row is read once.
#include "launch.h"

namespace rapo::cuda {
namespace {

struct GatherCall {
  LogitRows logits;
  const std::int32_t* token_ids;
  double temperature;
  GatherOutputs outputs;
  Report* report;
};

__global__ void check_token_ids(const __grid_constant__ GatherCall call) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= call.logits.rows) return;
  const std::int32_t id = call.token_ids[i];
  if (id < 0 || id >= call.logits.vocab_size) {
    note_fault(&call.report->status.invalid, i, static_cast<int>(RowFault::token_ids));
  }
}

template <class In>
__global__ void __launch_bounds__(kRowThreads) gather_rows(const __grid_constant__ GatherCall call) {
  if (call.report->status.invalid != kNoFault) return;
  const LogitRows& l = call.logits;
  const GatherOutputs& out = call.outputs;
  const auto scale = static_cast<float>(1 / call.temperature);
  const float k = in_powers_of_two(scale);
  for (std::int64_t i = blockIdx.x; i < l.rows; i += gridDim.x) {
    const In* row = typed_row<In>(l.data, l.stride, i);
    const RowStats s = block_stats(read_row<In, true>(row, l.vocab_size, k, {}, no_slots()), k);
    if (threadIdx.x == 0) {
      if (!usable(s)) {
        note_fault(&call.report->status.non_finite, i, static_cast<int>(DataFault::kLogits));
      } else {
        if (out.logprobs) {
          const float z = Element<In>::widen(load1(row + call.token_ids[i]));
          out.logprobs[i] = static_cast<float>(log_prob(s, z, scale));
        }
        if (out.entropy) out.entropy[i] = static_cast<float>(entropy(s));
        if (out.log_sum_exp) out.log_sum_exp[i] = static_cast<float>(s.max * scale + log_sum(s));
      }
    }
    __syncthreads();
  }
}

}  // namespace

cudaError_t gather_logprobs(int device, const LogitRows& logits, const std::int32_t* token_ids,
                            double temperature, const GatherOutputs& outputs, Report* report,
                            cudaStream_t stream) {
  RAPO_TRY(cudaMemsetAsync(&report->status, 0xff, sizeof(Status), stream));
  if (logits.rows == 0) return cudaSuccess;
  const GatherCall call{logits, token_ids, temperature, outputs, report};
  if (outputs.logprobs) RAPO_TRY(launch(check_token_ids, one_thread_each(logits.rows, stream), call));
  return for_dtype(logits.dtype, [&](auto element) {
    using In = decltype(element);
    Launch shape{0, row_threads(logits.vocab_size, logits.dtype), kSharedRows, 1, stream};
    RAPO_TRY(row_blocks(gather_rows<In>, device, logits.rows, 1, shape));
    return launch(gather_rows<In>, shape, call);
  });
}

}  // namespace rapo::cuda
