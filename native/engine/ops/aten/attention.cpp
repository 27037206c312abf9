// Attention over packed segments: libtorch's flash attention if it supports the tensors, plain products
// otherwise.
#include <ATen/Context.h>
#include <ATen/ops/_flash_attention_backward.h>
#include <ATen/ops/_flash_attention_forward.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/softmax.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "ops/aten/ops.h"

namespace rapo::ops {

/// A range of queries and the range of keys that it attends to. Query i sees the segment's keys 0 .. keys -
/// queries + i, so that the last query sees all keys.
struct Segment {
  std::int64_t query, queries;  // first row, number of rows
  std::int64_t key, keys;
};

/// What the operations need to know of a TrunkInput, on its device. Made once; the TrunkInput keeps it.
struct AtenInput {
  at::Tensor positions;           // (R) int64
  std::vector<Segment> segments;  // ordered by query; `key` is an index into key_rows
  at::Tensor key_rows;            // (keys of all segments) int64; undefined if it would be 0 .. R - 1
  at::Tensor query_ends,
      key_ends;  // (segments + 1) int32: the first query (key) of each segment, and the number of all
  std::int64_t most_queries = 0, most_keys = 0;
};

namespace aten {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// The segments of the families. A prefix attends to its own keys; a branch attends to the prefix's keys and
/// to its own. The input keeps the result for all layers and for the backward pass.
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

/// The half-split rotation of x (R, heads, D), see cpu/attention.cpp; cos, sin (R, D / 2). back: the
/// transposed rotation.
at::Tensor rotate(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, bool back = false) {
  const std::int64_t half = x.size(2) / 2;
  const auto c = cos.unsqueeze(1), s = back ? sin.unsqueeze(1).neg() : sin.unsqueeze(1);
  const auto x1 = wide(x.narrow(2, 0, half)), x2 = wide(x.narrow(2, half, half));
  return at::cat({x1.mul(c).sub_(x2.mul(s)), x2.mul(c).add_(x1.mul(s))}, 2).to(x.scalar_type());
}

/// Views of qkv (R, (H + 2K) D): queries (R, H, D), keys and values (R, K, D).
struct Heads {
  at::Tensor q, k, v;

  Heads(const loops::HeadShape& s, const at::Tensor& qkv) {
    const auto all = qkv.view({qkv.size(0), s.heads + 2 * s.kv_heads, s.head_dim});
    q = all.narrow(1, 0, s.heads);
    k = all.narrow(1, s.heads, s.kv_heads);
    v = all.narrow(1, s.heads + s.kv_heads, s.kv_heads);
  }
};

/// Whether libtorch's flash attention supports such tensors.
bool has_flash(const at::Tensor& x, std::int64_t head_dim) {
  return x.is_cuda() && x.scalar_type() == at::kBFloat16 && head_dim % 8 == 0 && head_dim <= 256;
}

double scale_of(const loops::HeadShape& s) { return 1 / std::sqrt(static_cast<double>(s.head_dim)); }

/// (n, H, D) -> (K, H / K * n, D) float32: groups the queries by key/value head.
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

/// Scaled scores of q (K, share * n, D) with the keys (K, m, D); -inf if a query does not see a key.
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
    // Flash attention's causal mask is aligned at the last query and the last key, like a segment's.
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

/// While an object of this class exists, libtorch's flash attention is deterministic. By default it adds up
/// dq with atomics.
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

/// The common inputs of attention and its backward pass: rotated queries, and keys and values in the order of
/// the segments.
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
  if (in.key_rows.defined()) {  // a prefix's keys collect the gradients of its branches
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

void place_batch(DecodeBatch& batch, const Block& cache, const Rope& rope) {
  const auto places = at::arange(batch.lengths.size(0), batch.lengths.options());
  batch.rows = places.mul_(cache.positions()).add_(batch.lengths);
  batch.cos = rope.cos.index_select(0, batch.lengths);
  batch.sin = rope.sin.index_select(0, batch.lengths);
}

at::Tensor decode_attention(const loops::HeadShape& shape, const Block& cache, std::int64_t layer,
                            const DecodeBatch& batch, const at::Tensor& qkv) {
  const Heads heads(shape, qkv);
  const std::int64_t n = qkv.size(0), positions = cache.positions(), share = shape.heads / shape.kv_heads;
  const auto q = rotate(heads.q, batch.cos, batch.sin);
  const auto keys = cache.keys.select(0, layer), values = cache.values.select(0, layer);
  keys.flatten(0, 1).index_copy_(0, batch.rows, rotate(heads.k, batch.cos, batch.sin));
  values.flatten(0, 1).index_copy_(0, batch.rows, heads.v);
  if (has_flash(q, shape.head_dim)) {
    const auto ends = at::arange(n + 1, options_of(qkv, at::kInt));
    // Each place has its own range of keys; `lengths` says how many of them count.
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

}  // namespace aten
}  // namespace rapo::ops
