#include "model/fused_head.h"

#include <algorithm>
#include <vector>

#include "cuda/device.h"
#include "kernels/cuda/calls.h"
#include "kernels/loss.h"
#include "kernels/rows.h"
#include "ops/ops.h"

namespace rapo {
namespace {

/// A copy of a host array on x's device; null if the array is null. `held` keeps the copy alive.
template <class T>
const T* on_device(const T* host, std::int64_t count, const at::Tensor& x, std::vector<at::Tensor>& held) {
  if (!host) return nullptr;
  const auto bytes = count * static_cast<std::int64_t>(sizeof(T));
  held.push_back(at::from_blob(const_cast<T*>(host), {bytes}, at::kByte).to(x.device()));
  return static_cast<const T*>(held.back().data_ptr());
}

/// The batch with its arrays on x's device.
Batch batch_on_device(const Batch& host, const at::Tensor& x, std::vector<at::Tensor>& held) {
  if (x.is_cpu()) return host;
  Batch b = host;
#define RAPO_ON_DEVICE(name, ...) b.name = on_device(host.name, b.rows, x, held);
  RAPO_ROW_ARRAYS(RAPO_ON_DEVICE)
#undef RAPO_ON_DEVICE
  b.sequence_log_ratios = on_device(host.sequence_log_ratios, b.rows, x, held);
  return b;
}

}  // namespace

Metrics fused_head_loss(const ops::Backend& ops, const HeadRows& rows, const ops::Linear& weight,
                        const ops::Linear& ref_weight, const Objective& objective, std::int64_t chunk_rows,
                        const Control& control, at::Tensor& dhidden, at::Tensor& dweight) {
  Metrics total;
  std::vector<at::Tensor> held;
  const Batch batch = batch_on_device(rows.batch, rows.hidden, held);
  for (std::int64_t at = 0; at < rows.batch.rows; at += chunk_rows) {
    control.check();
    const std::int64_t n = std::min(chunk_rows, rows.batch.rows - at);
    const auto hidden = rows.hidden.narrow(0, at, n);
    auto logits = ops.linear(hidden, weight, {});
    at::Tensor ref_logits;
    if (rows.ref_hidden.defined()) ref_logits = ops.linear(rows.ref_hidden.narrow(0, at, n), ref_weight, {});

    Batch part = rows_from(batch, at, n);
    part.dtype = ops::dtype_of(logits);
    part.logits = logits.data_ptr();
    part.logits_stride = logits.stride(0);
    if (ref_logits.defined()) {
      part.ref_logits = ref_logits.data_ptr();
      part.ref_stride = ref_logits.stride(0);
    }
    Outputs outputs;
    outputs.grad_logits = logits.data_ptr();  // in place: the gradient overwrites the logits
    outputs.grad_dtype = part.dtype;
    outputs.grad_stride = part.logits_stride;
    total.add(logits.is_cpu()
                  ? policy_loss(part, objective, outputs)
                  : cuda::policy_loss_of_device_arrays(logits.get_device(), device::stream(logits.device()),
                                                       part, objective, outputs));

    dhidden.narrow(0, at, n).copy_(ops.linear_backward(logits, weight.weight));
    if (dweight.defined()) ops.add_weight_grad(dweight, logits, hidden);
  }
  return total;
}

void fused_head_logprobs(const ops::Backend& ops, const at::Tensor& hidden, const ops::Linear& weight,
                         const std::int32_t* token_ids, const std::int64_t* row_names, double temperature,
                         std::int64_t chunk_rows, const Control& control, float* logprobs, float* entropy) {
  const std::int64_t total = hidden.size(0);
  std::vector<at::Tensor> held;
  const std::int32_t* ids = hidden.is_cpu() ? token_ids : on_device(token_ids, total, hidden, held);
  for (std::int64_t at = 0; at < total; at += chunk_rows) {
    control.check();
    const std::int64_t n = std::min(chunk_rows, total - at);
    const auto logits = ops.linear(hidden.narrow(0, at, n), weight, {});
    LogitRows rows;
    rows.rows = n;
    rows.vocab_size = weight.weight.size(0);
    rows.dtype = ops::dtype_of(logits);
    rows.data = logits.data_ptr();
    rows.stride = logits.stride(0);
    rows.row_names = row_names + at;
    GatherOutputs outputs;
    if (logits.is_cpu()) {
      outputs.logprobs = logprobs + at;
      outputs.entropy = entropy + at;
      gather_logprobs(rows, ids + at, temperature, outputs);
      continue;
    }
    const auto results = at::empty({2, n}, logits.options().dtype(at::kFloat));
    outputs.logprobs = results.data_ptr<float>();
    outputs.entropy = results.data_ptr<float>() + n;
    cuda::gather_logprobs_of_device_arrays(logits.get_device(), device::stream(logits.device()), rows,
                                           ids + at, temperature, outputs);
    const auto host = results.to(at::kCPU);
    std::copy_n(host.data_ptr<float>(), n, logprobs + at);
    std::copy_n(host.data_ptr<float>() + n, n, entropy + at);
  }
}

}  // namespace rapo
