#include "ops/ops_aten.h"

#include <ATen/Context.h>
#include <ATen/ops/_flash_attention_backward.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/silu_backward.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/topk.h>
#include <ATen/ops/where.h>

#include <cmath>
#include <limits>
#include <optional>

namespace rapo::ops::aten {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

at::Tensor wide(const at::Tensor& x) { return x.to(at::kFloat); }

at::TensorOptions options_of(const at::Tensor& like, at::ScalarType type) {
  return like.options().dtype(type);
}

/// table[rows[i]] += x[i] in the order of i: index_add_'s order is fixed on the CPU alone, index_put_'s on
/// CUDA.
void add_rows(at::Tensor& table, const at::Tensor& rows, const at::Tensor& x) {
  if (table.is_cpu()) {
    table.index_add_(0, rows, x);
  } else {
    table.index_put_({rows}, x, true);
  }
}

}  // namespace

at::Tensor indices(const std::int64_t* ids, std::int64_t count, const at::Tensor& like) {
  const auto host = at::from_blob(const_cast<std::int64_t*>(ids), {count}, at::kLong);
  return host.to(like.device(), at::kLong, false, true);
}

at::Tensor indices(const std::int32_t* ids, std::int64_t count, const at::Tensor& like) {
  const auto host = at::from_blob(const_cast<std::int32_t*>(ids), {count}, at::kInt);
  return host.to(like.device(), at::kLong, false, true);
}

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
  dw.add_(g.mul(normed).sum({0}));
  const auto gw = g.mul(wide(w));
  const auto pull = gw.mul(normed).mean({1}, true);
  dx.add_(gw.sub_(normed.mul(pull)).mul_(r));
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

namespace {

/// The segments of a family: its prefix, whose keys are its own, and the branches, whose keys are the
/// prefix's and their own. Kept by the input, for the layers and for the backward pass.
const AtenInput& prepared(const TrunkInput& input, const at::Tensor& like) {
  if (input.aten) return *input.aten;
  auto made = std::make_shared<AtenInput>();
  std::vector<std::int64_t> positions, key_rows;
  bool is_plain = true;
  for (const Family& family : input.families) {
    std::int64_t row = family.begin;
    for (std::size_t i = 0; i < family.lengths.size(); ++i) {
      const std::int64_t length = family.lengths[i], before = i == 0 ? 0 : family.lengths[0];
      is_plain = is_plain && i == 0;
      if (length == 0) continue;
      made->segments.push_back({row, length, static_cast<std::int64_t>(key_rows.size()), before + length});
      for (std::int64_t t = 0; t < before; ++t) key_rows.push_back(family.begin + t);
      for (std::int64_t t = 0; t < length; ++t) {
        key_rows.push_back(row + t);
        positions.push_back(before + t);
      }
      row += length;
    }
  }
  std::vector<std::int64_t> query_ends{0}, key_ends{0};
  for (const Segment& s : made->segments) {
    query_ends.push_back(s.query + s.queries);
    key_ends.push_back(s.key + s.keys);
    made->most_queries = std::max(made->most_queries, s.queries);
    made->most_keys = std::max(made->most_keys, s.keys);
  }
  const auto on_device = [&](const std::vector<std::int64_t>& values) {
    return indices(values.data(), static_cast<std::int64_t>(values.size()), like);
  };
  made->positions = on_device(positions);
  if (!is_plain) made->key_rows = on_device(key_rows);
  made->query_ends = on_device(query_ends).to(at::kInt);
  made->key_ends = on_device(key_ends).to(at::kInt);
  input.aten = std::move(made);
  return *input.aten;
}

/// The half-split rotation of x (R, heads, D), see loops.cpp; cos, sin (R, D / 2). back: its transpose.
at::Tensor rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool back = false) {
  const std::int64_t half = x.size(2) / 2;
  const auto c = cos.unsqueeze(1), s = back ? sin.unsqueeze(1).neg() : sin.unsqueeze(1);
  const auto x1 = wide(x.narrow(2, 0, half)), x2 = wide(x.narrow(2, half, half));
  return at::cat({x1.mul(c).sub_(x2.mul(s)), x2.mul(c).add_(x1.mul(s))}, 2).to(x.scalar_type());
}

/// Queries (R, H, D), keys and values (R, K, D) of (R, (H + 2K) D): views.
struct Heads {
  at::Tensor q, k, v;

  Heads(const loops::HeadShape& s, const at::Tensor& qkv) {
    const auto all = qkv.view({qkv.size(0), s.heads + 2 * s.kv_heads, s.head_dim});
    q = all.narrow(1, 0, s.heads);
    k = all.narrow(1, s.heads, s.kv_heads);
    v = all.narrow(1, s.heads + s.kv_heads, s.kv_heads);
  }
};

/// Whether libtorch's flash attention takes these. RAPO_ENGINE_ISA=aten keeps to plain operations here too.
bool has_flash(const at::Tensor& x, std::int64_t head_dim) {
  static const at::Tensor host = at::empty({0}, at::kFloat);
  return x.is_cuda() && x.scalar_type() == at::kBFloat16 && head_dim % 8 == 0 && head_dim <= 256 &&
         !on_aten(host);
}

double scale_of(const loops::HeadShape& s) { return 1 / std::sqrt(static_cast<double>(s.head_dim)); }

/// (n, H, D) -> (K, H / K * n, D) float32: a key/value head's queries together.
at::Tensor by_kv_head(const at::Tensor& x, std::int64_t kv_heads) {
  const std::int64_t n = x.size(0), share = x.size(1) / kv_heads, width = x.size(2);
  return wide(x)
      .view({n, kv_heads, share, width})
      .permute({1, 2, 0, 3})
      .reshape({kv_heads, share * n, width});
}
at::Tensor by_query(const at::Tensor& x, std::int64_t n) {
  const std::int64_t kv_heads = x.size(0), share = x.size(1) / n, width = x.size(2);
  return x.view({kv_heads, share, n, width}).permute({2, 0, 1, 3}).reshape({n, kv_heads * share, width});
}

/// q (K, share * n, D) times the keys (K, m, D), scaled, -inf where a query does not see a key.
at::Tensor scores(const at::Tensor& q, const at::Tensor& k, std::int64_t n, double scale) {
  const std::int64_t m = k.size(1);
  auto out = at::bmm(q, k.transpose(1, 2)).mul_(scale);
  const auto hidden = at::ones({n, m}, options_of(q, at::kBool)).triu_(m - n + 1);
  out.view({k.size(0), -1, n, m}).masked_fill_(hidden, -kInfinity);
  return out;
}

/// Attention within segments: q (R, H, D), k and v (keys, K, D) -> (R, H, D).
at::Tensor attend(const loops::HeadShape& shape, const AtenInput& input, const at::Tensor& q,
                  const at::Tensor& k, const at::Tensor& v, at::Tensor* lse) {
  if (has_flash(q, shape.head_dim)) {
    // Its causal mask is aligned at the last query and the last key, as a segment's is.
    auto result = at::_flash_attention_forward(q, k, v, input.query_ends, input.key_ends, input.most_queries,
                                               input.most_keys, 0, true, false, scale_of(shape));
    if (lse) *lse = std::get<1>(result);
    return std::get<0>(result);
  }
  auto out = at::empty(q.sizes(), q.options());
  if (lse) *lse = at::empty({q.size(0), shape.heads, 1}, options_of(q, at::kFloat));
  for (const Segment& s : input.segments) {
    const auto keys = wide(k.narrow(0, s.key, s.keys)).transpose(0, 1),
               values = wide(v.narrow(0, s.key, s.keys)).transpose(0, 1);
    auto p =
        scores(by_kv_head(q.narrow(0, s.query, s.queries), shape.kv_heads), keys, s.queries, scale_of(shape));
    const auto total = at::logsumexp(p, {2}, true);
    p.sub_(total).exp_();
    out.narrow(0, s.query, s.queries).copy_(by_query(at::bmm(p, values), s.queries));
    if (lse) lse->narrow(0, s.query, s.queries).copy_(by_query(total, s.queries));
  }
  return out;
}

/// libtorch's flash attention adds up dq with atomics unless told not to.
class Deterministic {
 public:
  Deterministic()
      : was_(context().deterministicAlgorithms()), warned_(context().deterministicAlgorithmsWarnOnly()) {
    context().setDeterministicAlgorithms(true, true);
  }
  ~Deterministic() { context().setDeterministicAlgorithms(was_, warned_); }
  Deterministic(const Deterministic&) = delete;
  Deterministic& operator=(const Deterministic&) = delete;

 private:
  static at::Context& context() { return at::globalContext(); }
  bool was_, warned_;
};

struct AttentionGradients {
  at::Tensor dq, dk, dv;  // shaped as q, k, v
};

AttentionGradients attend_backward(const loops::HeadShape& shape, const AtenInput& input, const at::Tensor& q,
                                   const at::Tensor& k, const at::Tensor& v, const at::Tensor& out,
                                   const at::Tensor& lse, const at::Tensor& dout) {
  if (has_flash(q, shape.head_dim)) {
    const Deterministic guard;
    const auto unused = at::empty({2}, options_of(q, at::kLong));  // dropout's random state
    auto [dq, dk, dv] = at::_flash_attention_backward(dout, q, k, v, out, lse, input.query_ends,
                                                      input.key_ends, input.most_queries, input.most_keys, 0,
                                                      true, unused, unused, scale_of(shape));
    return {dq, dk, dv};
  }
  AttentionGradients grad{at::empty(q.sizes(), options_of(q, at::kFloat)),
                          at::empty(k.sizes(), options_of(q, at::kFloat)),
                          at::empty(v.sizes(), options_of(q, at::kFloat))};
  for (const Segment& s : input.segments) {
    const auto of = [&](const at::Tensor& x) {
      return by_kv_head(x.narrow(0, s.query, s.queries), shape.kv_heads);
    };
    const auto queries = of(q), d = of(dout), total = of(lse);
    const auto keys = wide(k.narrow(0, s.key, s.keys)).transpose(0, 1),
               values = wide(v.narrow(0, s.key, s.keys)).transpose(0, 1);
    const auto p = scores(queries, keys, s.queries, scale_of(shape)).sub_(total).exp_();
    const auto dot = d.mul(of(out)).sum({2}, true);
    const auto ds = at::bmm(d, values.transpose(1, 2)).sub_(dot).mul_(p).mul_(scale_of(shape));
    grad.dq.narrow(0, s.query, s.queries).copy_(by_query(at::bmm(ds, keys), s.queries));
    grad.dk.narrow(0, s.key, s.keys).copy_(at::bmm(ds.transpose(1, 2), queries).transpose(0, 1));
    grad.dv.narrow(0, s.key, s.keys).copy_(at::bmm(p.transpose(1, 2), d).transpose(0, 1));
  }
  return grad;
}

/// What attention's two directions begin with: rotated queries, and keys and values as the segments count
/// them.
struct Rotated {
  at::Tensor cos, sin;  // (R, D / 2)
  at::Tensor q, k, v;   // k, v (R, K, D)
  at::Tensor segment_k, segment_v;

  Rotated(const loops::HeadShape& shape, const AtenInput& input, const Rope& rope, const at::Tensor& qkv) {
    const Heads heads(shape, qkv);
    cos = rope.cos.index_select(0, input.positions);
    sin = rope.sin.index_select(0, input.positions);
    q = rotate(heads.q, cos, sin);
    k = rotate(heads.k, cos, sin);
    v = heads.v;
    segment_k = input.key_rows.defined() ? k.index_select(0, input.key_rows) : k;
    segment_v = input.key_rows.defined() ? v.index_select(0, input.key_rows) : v;
  }
};

}  // namespace

at::Tensor attention(const loops::HeadShape& shape, const TrunkInput& input, const Rope& rope,
                     const at::Tensor& qkv, at::Tensor* lse, at::Tensor* kv) {
  const AtenInput& in = prepared(input, qkv);
  const Rotated x(shape, in, rope, qkv);
  if (kv) *kv = at::cat({x.k.flatten(1), x.v.flatten(1)}, 1);
  return attend(shape, in, x.q, x.segment_k, x.segment_v, lse).flatten(1);
}

at::Tensor attention_backward(const loops::HeadShape& shape, const TrunkInput& input, const Rope& rope,
                              const at::Tensor& qkv, const at::Tensor& out, const at::Tensor& lse,
                              const at::Tensor& dout) {
  const AtenInput& in = prepared(input, qkv);
  const Rotated x(shape, in, rope, qkv);
  AttentionGradients grad = attend_backward(shape, in, x.q, x.segment_k, x.segment_v, out.view(x.q.sizes()),
                                            lse, dout.view(x.q.sizes()));
  if (in.key_rows.defined()) {  // a prefix's keys collect the shares of its branches
    for (at::Tensor* d : {&grad.dk, &grad.dv}) {
      auto sum = at::zeros(x.k.sizes(), options_of(qkv, at::kFloat));
      add_rows(sum, in.key_rows, wide(*d));
      *d = sum;
    }
  }
  auto dqkv = at::empty_like(qkv);
  const Heads to(shape, dqkv);
  to.q.copy_(rotate(grad.dq, x.cos, x.sin, true));
  to.k.copy_(rotate(grad.dk, x.cos, x.sin, true));
  to.v.copy_(grad.dv);
  return dqkv;
}

void place_batch(DecodeBatch& batch, const Cache& cache, const Rope& rope) {
  const auto places = at::arange(batch.lengths.size(0), batch.lengths.options());
  batch.rows = places.mul_(cache.positions()).add_(batch.lengths);
  batch.cos = rope.cos.index_select(0, batch.lengths);
  batch.sin = rope.sin.index_select(0, batch.lengths);
}

at::Tensor decode_attention(const loops::HeadShape& shape, const Cache& cache, std::int64_t layer,
                            const DecodeBatch& batch, const at::Tensor& qkv) {
  const Heads heads(shape, qkv);
  const std::int64_t n = qkv.size(0), positions = cache.positions(), share = shape.heads / shape.kv_heads;
  const auto q = rotate(heads.q, batch.cos, batch.sin);
  const auto keys = cache.keys.select(0, layer), values = cache.values.select(0, layer);
  keys.flatten(0, 1).index_copy_(0, batch.rows, rotate(heads.k, batch.cos, batch.sin));
  values.flatten(0, 1).index_copy_(0, batch.rows, heads.v);
  if (has_flash(q, shape.head_dim)) {
    const auto ends = at::arange(n + 1, options_of(qkv, at::kInt));
    // A place's keys begin where its positions do, and as many count as there are.
    return std::get<0>(at::_flash_attention_forward(q, keys.flatten(0, 1), values.flatten(0, 1), ends,
                                                    ends.mul(positions), 1, batch.longest + 1, 0, false,
                                                    false, scale_of(shape), std::nullopt, std::nullopt,
                                                    batch.lengths.add(1).to(at::kInt)))
        .flatten(1);
  }
  const std::int64_t seen = batch.longest + 1;
  // (B, positions, K, D) -> (B K, positions, D)
  const auto visible = [&](const at::Tensor& x) {
    return wide(x.narrow(0, 0, n).narrow(1, 0, seen)).transpose(1, 2).reshape({-1, seen, shape.head_dim});
  };
  auto p =
      at::bmm(wide(q).view({-1, share, shape.head_dim}), visible(keys).transpose(1, 2)).mul_(scale_of(shape));
  const auto hidden =
      at::arange(seen, batch.lengths.options()).unsqueeze(0).gt(batch.lengths.unsqueeze(1));  // (B, seen)
  p.view({n, shape.kv_heads, share, seen}).masked_fill_(hidden.view({n, 1, 1, seen}), -kInfinity);
  return at::bmm(at::softmax(p, 2), visible(values)).view({n, -1}).to(qkv.scalar_type());
}

at::Tensor spread_rows(const at::Tensor& rows, const std::vector<std::int64_t>& positions,
                       std::int64_t total) {
  auto out = at::zeros({total, rows.size(1)}, options_of(rows, at::kFloat));
  add_rows(out, indices(positions.data(), static_cast<std::int64_t>(positions.size()), rows), wide(rows));
  return out.to(rows.scalar_type());
}

void scatter_add_rows(at::Tensor& table, const std::int32_t* ids, const at::Tensor& x) {
  add_rows(table, indices(ids, x.size(0), x), wide(x));
}

at::Tensor linear(const at::Tensor& x, const at::Tensor& w, const at::Tensor& bias_or_residual) {
  return bias_or_residual.defined() ? at::addmm(bias_or_residual, x, w.t()) : at::mm(x, w.t());
}

at::Tensor linear_backward(const at::Tensor& dy, const at::Tensor& w) { return at::mm(dy, w); }

void add_weight_grad(at::Tensor& grad, const at::Tensor& dy, const at::Tensor& x) {
  if (x.scalar_type() == at::kFloat) {
    grad.addmm_(dy.t(), x);
  } else {
    grad.add_(at::mm(dy.t(), x));
  }
}

namespace {

/// Where, in each row of p (B, n), ascending sums first exceed `left` (B, 1); n where they do not.
at::Tensor passed(const at::Tensor& sums, const at::Tensor& left) { return sums.le(left).sum({1}, true); }

/// A token of each row of p (B, blocks * kSumBlock), in the order of ids.
at::Tensor draw(const at::Tensor& p, const at::Tensor& u) {
  const std::int64_t rows = p.size(0), blocks = p.size(1) / loops::kSumBlock;
  const auto by_block = p.view({rows, blocks, loops::kSumBlock});
  const auto sums = by_block.sum({2}, false, at::kDouble);
  const auto ends = sums.cumsum(1);
  const auto left = ends.narrow(1, blocks - 1, 1).mul(u);
  const auto block = passed(ends, left).clamp_max_(blocks - 1);  // (B, 1)
  const auto before = ends.gather(1, block).sub_(sums.gather(1, block));
  const auto inner = by_block.gather(1, block.unsqueeze(2).expand({rows, 1, loops::kSumBlock})).squeeze(1);
  auto at = passed(inner.to(at::kDouble).cumsum(1), left.sub(before));
  // Where rounding keeps the sum below, the block's last word that has a probability, or the best of all.
  const auto numbers = at::arange(1, loops::kSumBlock + 1, block.options());
  const auto last = inner.gt(0).mul(numbers).amax({1}, true).sub_(1);
  at = at::minimum(at, last).add_(block.mul(loops::kSumBlock));
  return at::where(last.lt(0), p.argmax(1, true), at);
}

/// A token of each row of p (B, V) after top-k, top-p and min-p, in the order of probabilities; equal ones
/// go by id. total (B, 1): of p.
at::Tensor draw_filtered(const at::Tensor& p, const at::Tensor& total, const at::Tensor& u,
                         const SamplingParams& params) {
  constexpr std::int64_t kLow = 0xffffffff;
  const std::int64_t size = p.size(1);
  const bool has_top_k = params.top_k > 0 && params.top_k < size;
  // A probability's bits, then the id from the end: one number by which to sort, as no float's sign is set.
  const auto numbers = at::arange(size, options_of(p, at::kLong)).neg_().add_(kLow);
  auto sorted = p.contiguous().view(at::kInt).to(at::kLong).bitwise_left_shift_(32).bitwise_or_(numbers);
  sorted = has_top_k ? std::get<0>(at::topk(sorted, params.top_k, 1, true, true))
                     : std::get<0>(at::sort(sorted, 1, true));
  const auto ids = sorted.bitwise_and(kLow).neg_().add_(kLow);
  auto q = sorted.bitwise_right_shift(32).to(at::kInt).view(at::kFloat).to(at::kDouble);
  auto keep = q.ge(params.min_p);
  if (params.top_p < 1) {
    const auto sums = q.cumsum(1), all = has_top_k ? sums.narrow(1, sums.size(1) - 1, 1) : total;
    keep.logical_and_(sums.sub(q).lt(all.mul(params.top_p)));
  }
  keep.narrow(1, 0, 1).fill_(true);
  q = q.mul_(keep);
  const auto sums = q.cumsum(1);
  const auto at = passed(sums, sums.narrow(1, sums.size(1) - 1, 1).mul(u));
  const auto last = q.gt(0).sum({1}, true).sub_(1).clamp_min_(0);  // those that are kept come first
  return ids.gather(1, at::minimum(at, last));
}

}  // namespace

at::Tensor sample_rows(const at::Tensor& logits, const at::Tensor& u, const SamplingParams& params) {
  const std::int64_t rows = logits.size(0), size = logits.size(1);
  const std::int64_t padded = (size + loops::kSumBlock - 1) / loops::kSumBlock * loops::kSumBlock;
  const bool greedy = params.temperature == 0;
  const auto z = wide(logits).mul(greedy ? 1.0f : static_cast<float>(1 / params.temperature));
  const auto max = z.amax({1}, true);
  auto p = at::zeros({rows, padded}, z.options());
  p.narrow(1, 0, size).copy_(z.sub(max).exp_());
  const auto sum = p.sum({1}, true, at::kDouble);
  const auto words = p.narrow(1, 0, size), decide = u.unsqueeze(1);
  at::Tensor token;
  if (greedy) {
    token = logits.argmax(1, true);
  } else if (params.top_p < 1 || (params.top_k > 0 && params.top_k < size)) {
    token = draw_filtered(words, sum, decide, params);
  } else {
    if (params.min_p > 0) p.masked_fill_(p.lt(params.min_p), 0);
    token = draw(p, decide);
  }
  token.clamp_(0, size - 1);  // rows of NaN lead anywhere
  auto logprob = z.gather(1, token).sub_(max).sub_(sum.log().to(at::kFloat)).clamp_max_(0).to(at::kDouble);
  logprob.masked_fill_(max.isfinite().logical_and_(sum.isfinite()).logical_not_(), std::nan(""));
  return at::stack({token.squeeze(1).to(at::kDouble), logprob.squeeze(1)});
}

double norm_of(const at::Tensor& flat) {
  constexpr std::int64_t kPart = 1 << 24;  // bounds what is widened at once
  auto total = at::zeros({}, options_of(flat, at::kDouble));
  for (std::int64_t at = 0; at < flat.numel(); at += kPart) {
    total.add_(flat.narrow(0, at, std::min(kPart, flat.numel() - at)).to(at::kDouble).square_().sum());
  }
  return std::sqrt(total.item<double>());
}

}  // namespace rapo::ops::aten
