#include "ops/aten/ops.h"

#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/full.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/silu_backward.h>

#include <algorithm>
#include <cmath>

namespace rapo::ops {
namespace aten {

at::Tensor indices(const std::int64_t* ids, std::int64_t count, const at::Tensor& like) {
  const auto host = at::from_blob(const_cast<std::int64_t*>(ids), {count}, at::kLong);
  return host.to(like.device(), at::kLong, false, true);
}

at::Tensor indices(const std::int32_t* ids, std::int64_t count, const at::Tensor& like) {
  const auto host = at::from_blob(const_cast<std::int32_t*>(ids), {count}, at::kInt);
  return host.to(like.device(), at::kLong, false, true);
}

void add_rows(at::Tensor& table, const at::Tensor& rows, const at::Tensor& x) {
  if (table.is_cpu()) {
    table.index_add_(0, rows, x);
  } else {
    table.index_put_({rows}, x, true);
  }
}

namespace {

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& w, double eps, at::Tensor* rstd) {
  const auto v = wide(x);
  const auto r = v.square().mean({1}).add_(eps).rsqrt_();
  if (rstd) *rstd = r;
  return v.mul(r.unsqueeze(1)).mul_(wide(w)).to(x.scalar_type());
}

void rms_norm_backward(const at::Tensor& x, const at::Tensor& w, const at::Tensor& rstd, const at::Tensor& dy,
                       at::Tensor& dx, at::Tensor& dw) {
  const auto r = rstd.unsqueeze(1);
  const auto normed = wide(x).mul(r), g = wide(dy);
  if (dw.defined()) dw.add_(g.mul(normed).sum({0}));
  const auto gw = g.mul(wide(w));
  const auto pull = gw.mul(normed).mean({1}, true);
  dx.add_(gw.sub_(normed.mul(pull)).mul_(r));
}

/// The heads of qkv (R, (H + 2K) D) that have norms, (R, H + K, D).
at::Tensor normed_heads(const loops::HeadShape& s, const at::Tensor& qkv) {
  return qkv.view({qkv.size(0), s.heads + 2 * s.kv_heads, s.head_dim}).narrow(1, 0, s.heads + s.kv_heads);
}

/// A weight for each of these heads, (H + K, D) float32.
at::Tensor head_weights(const loops::HeadShape& s, const at::Tensor& q_norm, const at::Tensor& k_norm) {
  return at::cat({wide(q_norm).expand({s.heads, -1}), wide(k_norm).expand({s.kv_heads, -1})});
}

at::Tensor head_norm(const loops::HeadShape& shape, const at::Tensor& qkv, const at::Tensor& q_norm,
                     const at::Tensor& k_norm, double eps, at::Tensor* rstd) {
  const auto x = wide(normed_heads(shape, qkv));
  const auto r = x.square().mean({2}).add_(eps).rsqrt_();
  if (rstd) *rstd = r;
  auto out = qkv.clone();
  normed_heads(shape, out).copy_(x.mul(r.unsqueeze(2)).mul_(head_weights(shape, q_norm, k_norm)));
  return out;
}

at::Tensor head_norm_backward(const loops::HeadShape& shape, const at::Tensor& qkv, const at::Tensor& q_norm,
                              const at::Tensor& k_norm, const at::Tensor& rstd, const at::Tensor& dy,
                              at::Tensor& dq_norm, at::Tensor& dk_norm) {
  const auto r = rstd.unsqueeze(2);
  const auto normed = wide(normed_heads(shape, qkv)).mul(r), g = wide(normed_heads(shape, dy));
  if (dq_norm.defined()) {
    const auto dw = g.mul(normed).sum({0});  // (H + K, D)
    dq_norm.add_(dw.narrow(0, 0, shape.heads).sum({0}));
    dk_norm.add_(dw.narrow(0, shape.heads, shape.kv_heads).sum({0}));
  }
  const auto gw = g.mul(head_weights(shape, q_norm, k_norm));
  const auto pull = gw.mul(normed).mean({2}, true);
  auto out = dy.clone();
  normed_heads(shape, out).copy_(gw.sub(normed.mul(pull)).mul_(r));
  return out;
}

at::Tensor swiglu(const at::Tensor& gate_up) {
  const auto width = gate_up.size(1) / 2;
  const auto gate = gate_up.narrow(1, 0, width), up = gate_up.narrow(1, width, width);
  return at::silu(wide(gate)).mul_(up).to(gate_up.scalar_type());
}

at::Tensor swiglu_backward(const at::Tensor& gate_up, const at::Tensor& dout) {
  const auto width = gate_up.size(1) / 2;
  const auto gate = wide(gate_up.narrow(1, 0, width)), up = gate_up.narrow(1, width, width), d = wide(dout);
  auto dgate_up = at::empty_like(gate_up);
  dgate_up.narrow(1, 0, width).copy_(at::silu_backward(d.mul(up), gate));
  dgate_up.narrow(1, width, width).copy_(at::silu(gate).mul_(d));
  return dgate_up;
}

at::Tensor embed(const at::Tensor& table, const std::int32_t* token_ids, std::int64_t count) {
  return table.index_select(0, indices(token_ids, count, table));
}

at::Tensor gather_rows(const at::Tensor& x, const std::int64_t* rows, std::int64_t count) {
  return x.index_select(0, indices(rows, count, x));
}

at::Tensor spread_rows(const at::Tensor& rows, const std::vector<std::int64_t>& positions,
                       std::int64_t total) {
  auto out = at::zeros({total, rows.size(1)}, options_of(rows, at::kFloat));
  add_rows(out, indices(positions.data(), static_cast<std::int64_t>(positions.size()), rows), wide(rows));
  return out.to(rows.scalar_type());
}

void embed_backward(at::Tensor& table, const std::int32_t* token_ids, const at::Tensor& x) {
  add_rows(table, indices(token_ids, x.size(0), x), wide(x));
}

Linear prepare(const at::Tensor& weight) { return {weight, {}}; }

at::Tensor linear(const at::Tensor& x, const Linear& w, const at::Tensor& bias_or_residual) {
  const auto transposed = w.weight.t();
  return bias_or_residual.defined() ? at::addmm(bias_or_residual, x, transposed) : at::mm(x, transposed);
}

void add_linear(at::Tensor& y, const at::Tensor& x, const Linear& w) { y.addmm_(x, w.weight.t()); }

at::Tensor linear_backward(const at::Tensor& dy, const at::Tensor& w) { return at::mm(dy, w); }

void add_linear_backward(at::Tensor& dx, const at::Tensor& dy, const at::Tensor& w) { dx.addmm_(dy, w); }

void add_weight_grad(at::Tensor& grad, const at::Tensor& dy, const at::Tensor& x) {
  if (x.scalar_type() == at::kFloat) {
    grad.addmm_(dy.t(), x);
  } else {
    grad.add_(at::mm(dy.t(), x));
  }
}

double norm_of(const at::Tensor& flat) {
  constexpr std::int64_t kPart = 1 << 24;  // bounds the memory of the float64 copy
  auto total = at::zeros({}, options_of(flat, at::kDouble));
  for (std::int64_t at = 0; at < flat.numel(); at += kPart) {
    total.add_(flat.narrow(0, at, std::min(kPart, flat.numel() - at)).to(at::kDouble).square_().sum());
  }
  return std::sqrt(total.item<double>());
}

/// libtorch's fused AdamW, called once for the ranges with weight decay and once for the others.
void adamw(AdamWBuffers& buffers, const std::vector<FlatRange>& ranges, const AdamWStep& step,
           const Control& control) {
  const AdamW& params = step.params;
  if (step.grad_scale != 1) buffers.grad.mul_(step.grad_scale);
  const auto t = at::full({}, static_cast<double>(step.number), buffers.grad.options());
  for (const bool decays : {true, false}) {
    control.check();
    std::vector<at::Tensor> weights, grads, means, squares, steps;
    for (const FlatRange& range : ranges) {
      if (range.decays != decays) continue;
      const auto of = [&](const at::Tensor& flat) { return flat.narrow(0, range.offset, range.size); };
      weights.push_back(of(buffers.master));
      grads.push_back(of(buffers.grad));
      means.push_back(of(buffers.mean));
      squares.push_back(of(buffers.square));
      steps.push_back(t);
    }
    if (weights.empty()) continue;  // adapters have matrices alone; libtorch takes no empty list
    at::_fused_adamw_(weights, grads, means, squares, {}, steps, step.learning_rate, params.beta1,
                      params.beta2, decays ? params.weight_decay : 0, params.eps, false, false);
  }
}

void round_weights(const at::Tensor& master, at::Tensor& weights) { weights.copy_(master); }

}  // namespace
}  // namespace aten

const Backend& aten_backend() {
  static const Backend backend = {
      "aten",
      false,
      aten::rms_norm,
      aten::rms_norm_backward,
      aten::head_norm,
      aten::head_norm_backward,
      aten::swiglu,
      aten::swiglu_backward,
      aten::attention,
      aten::attention_backward,
      aten::embed,
      aten::embed_backward,
      aten::gather_rows,
      aten::spread_rows,
      aten::prepare,
      aten::linear,
      aten::add_linear,
      aten::linear_backward,
      aten::add_linear_backward,
      aten::add_weight_grad,
      aten::norm_of,
      aten::adamw,
      aten::round_weights,
  };
  return backend;
}

}  // namespace rapo::ops
