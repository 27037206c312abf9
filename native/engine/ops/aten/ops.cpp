#include "ops/aten/ops.h"

#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/bitwise_right_shift.h>
#include <ATen/ops/full.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/silu_backward.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>

#include <algorithm>
#include <array>
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

/// libtorch's fused AdamW on some ranges, all with weight decay or all without.
void fused_adamw(const AdamWStep& step, bool decays, const std::vector<at::Tensor>& weights,
                 std::vector<at::Tensor> grads, const std::vector<at::Tensor>& means,
                 const std::vector<at::Tensor>& squares) {
  if (weights.empty()) return;  // adapters have matrices alone; libtorch takes no empty list
  const AdamW& params = step.params;
  const auto t = at::full({}, static_cast<double>(step.number), grads.front().options());
  const std::vector<at::Tensor> steps(weights.size(), t);
  at::_fused_adamw_(weights, grads, means, squares, {}, steps, step.learning_rate, params.beta1, params.beta2,
                    decays ? params.weight_decay : 0, params.eps, false, false);
}

/// The halves of Philox's words that elements [first, first + 128 blocks) take, as loops::Ops::round_randomly
/// says: (128 blocks) int32. Words are held as int64.
at::Tensor rounding_halves(std::int64_t blocks, const RoundingNumbers& numbers, std::int64_t first,
                           const at::Tensor& like) {
  constexpr std::int64_t kLanes = 16, kLow = 0xFFFFFFFF;
  const auto low = [](std::uint64_t x) { return static_cast<std::int64_t>(x & 0xFFFFFFFF); };
  const auto high = [](const at::Tensor& x) { return at::bitwise_right_shift(x, 32).bitwise_and_(kLow); };
  const auto counter = at::arange(blocks * kLanes, options_of(like, at::kLong)).add_(first / 128 * kLanes);
  std::array<at::Tensor, 4> c = {counter.bitwise_and(kLow), high(counter),
                                 at::full_like(counter, low(numbers.stream)),
                                 at::full_like(counter, low(numbers.stream >> 32))};
  std::uint64_t k0 = low(numbers.key), k1 = low(numbers.key >> 32);
  for (int round = 0; round < 10; ++round) {
    // The products' 64 bits are right although their signs are not.
    const auto a = c[0].mul(std::int64_t{0xD2511F53}), b = c[2].mul(std::int64_t{0xCD9E8D57});
    c = {high(b).bitwise_xor_(c[1]).bitwise_xor_(low(k0)), b.bitwise_and(kLow),
         high(a).bitwise_xor_(c[3]).bitwise_xor_(low(k1)), a.bitwise_and(kLow)};
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  std::vector<at::Tensor> halves;
  for (const at::Tensor& words : c) {
    halves.push_back(words.bitwise_and(0xFFFF).view({blocks, kLanes}));
    halves.push_back(at::bitwise_right_shift(words, 16).view({blocks, kLanes}));
  }
  return at::stack(halves, 1).view({-1}).to(at::kInt);
}

void round_randomly(const at::Tensor& from, at::Tensor& to, const RoundingNumbers& numbers,
                    std::int64_t first) {
  constexpr std::int64_t kBlock = loops::kRoundingBlock;
  constexpr std::int64_t kPart = std::int64_t{1} << 24;  // bounds the memory of the random numbers
  const auto x = from.view({-1});
  auto y = to.view({-1});
  for (std::int64_t at = 0; at < x.numel(); at += kPart) {
    const std::int64_t n = std::min(kPart, x.numel() - at);
    const auto part = x.narrow(0, at, n);
    const auto random = rounding_halves((n + kBlock - 1) / kBlock, numbers, first + at, x).narrow(0, 0, n);
    const auto moved = at::bitwise_right_shift(part.view(at::kInt).add(random), 16).to(at::kShort);
    y.narrow(0, at, n).copy_(
        at::where(at::isfinite(part), moved.view(at::kBFloat16), part.to(at::kBFloat16)));
  }
}

/// float32 moments: called once for the ranges with weight decay and once for the others. bfloat16 moments
/// are widened part by part.
void adamw(AdamWBuffers& buffers, const std::vector<FlatRange>& ranges, const AdamWStep& step,
           const Control& control) {
  constexpr std::int64_t kPart = std::int64_t{1} << 24;
  if (step.grad_scale != 1) buffers.grad.mul_(step.grad_scale);
  if (buffers.mean.scalar_type() == at::kFloat) {
    for (const bool decays : {true, false}) {
      control.check();
      std::array<std::vector<at::Tensor>, 4> of;
      for (const FlatRange& range : ranges) {
        if (range.decays != decays) continue;
        std::size_t i = 0;
        for (const at::Tensor* flat : {&buffers.master, &buffers.grad, &buffers.mean, &buffers.square})
          of[i++].push_back(flat->narrow(0, range.offset, range.size));
      }
      fused_adamw(step, decays, of[0], of[1], of[2], of[3]);
    }
    return;
  }
  for (std::size_t r = 0; r < ranges.size(); ++r) {
    control.check();
    for (std::int64_t first = 0; first < ranges[r].size; first += kPart) {
      const std::int64_t at = ranges[r].offset + first, n = std::min(kPart, ranges[r].size - first);
      auto mean = buffers.mean.narrow(0, at, n), square = buffers.square.narrow(0, at, n);
      const auto wide_mean = wide(mean), wide_square = wide(square);
      fused_adamw(step, ranges[r].decays, {buffers.master.narrow(0, at, n)}, {buffers.grad.narrow(0, at, n)},
                  {wide_mean}, {wide_square});
      round_randomly(wide_mean, mean, {step.rounding_key, 2 * r}, first);
      round_randomly(wide_square, square, {step.rounding_key, 2 * r + 1}, first);
    }
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
      aten::round_randomly,
  };
  return backend;
}

}  // namespace rapo::ops
