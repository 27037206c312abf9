// The same operations as ops.h in ATen calls, which run on any device that libtorch has; ops.cpp hands
// tensors over to these by on_aten(). None waits for the device (norm_of does); what they take from host
// memory is copied there first. Symbols as in qwen2.h.
#pragma once

#include <cstdint>

#include "ops/ops.h"
#include "types.h"

namespace rapo::ops {

/// Which attention of `keys` a range of queries takes: query i of a segment sees the segment's keys up to and
/// with keys - queries + i, so that its last one sees them all.
struct Segment {
  std::int64_t query, queries;  // first row, number of rows
  std::int64_t key, keys;
};

/// What the operations need of a TrunkInput, on its device: made once and kept by it.
struct AtenInput {
  at::Tensor token_ids, positions;  // (R) int64
  std::vector<Segment> segments;    // in the order of their queries; keys count in rows of key_rows
  at::Tensor key_rows;              // (keys of all segments) int64; undefined where it would be 0 .. R - 1
  at::Tensor query_ends, key_ends;  // (segments + 1) int32: where each segment begins, and the end
  std::int64_t most_queries = 0, most_keys = 0;
};

/// Keys and values of the sequences that are being decoded: row s of the batch has place s.
struct Cache {
  at::Tensor keys, values;  // (layers, places, positions, K, D)

  std::int64_t places() const { return keys.size(1); }
  std::int64_t positions() const { return keys.size(2); }
};

/// The next tokens of the sequences at places 0 .. B - 1.
struct DecodeBatch {
  at::Tensor token_ids, lengths;  // (B) int64; length: positions in the cache
  std::int64_t longest = 0;       // no length is larger

  // Filled in by place_batch():
  at::Tensor rows;      // (B) int64: where the new keys go, as rows of (places * positions)
  at::Tensor cos, sin;  // (B, D / 2)
};

namespace aten {

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& w, double eps, at::Tensor* rstd);
void rms_norm_backward(const at::Tensor& x, const at::Tensor& w, const at::Tensor& rstd, const at::Tensor& dy,
                       at::Tensor& dx, at::Tensor& dw);
at::Tensor swiglu(const at::Tensor& gate_up);
at::Tensor swiglu_backward(const at::Tensor& gate_up, const at::Tensor& dout);
/// lse is attention_backward()'s alone: its shape depends on who computed it.
at::Tensor attention(const loops::HeadShape& shape, const TrunkInput& input, const Rope& rope,
                     const at::Tensor& qkv, at::Tensor* lse, at::Tensor* kv);
at::Tensor attention_backward(const loops::HeadShape& shape, const TrunkInput& input, const Rope& rope,
                              const at::Tensor& qkv, const at::Tensor& out, const at::Tensor& lse,
                              const at::Tensor& dout);
void place_batch(DecodeBatch& batch, const Cache& cache, const Rope& rope);
/// qkv (B, (H + 2K) D) of the batch's tokens -> (B, H D); their keys and values are put into the cache.
at::Tensor decode_attention(const loops::HeadShape& shape, const Cache& cache, std::int64_t layer,
                            const DecodeBatch& batch, const at::Tensor& qkv);

/// A copy of host memory, int64, on the device of `like`.
at::Tensor indices(const std::int32_t* ids, std::int64_t count, const at::Tensor& like);
at::Tensor indices(const std::int64_t* ids, std::int64_t count, const at::Tensor& like);
at::Tensor spread_rows(const at::Tensor& rows, const std::vector<std::int64_t>& positions,
                       std::int64_t total);
/// table (V, C) float32: row ids[i] += x[i].
void scatter_add_rows(at::Tensor& table, const std::int32_t* ids, const at::Tensor& x);

at::Tensor linear(const at::Tensor& x, const at::Tensor& w, const at::Tensor& bias_or_residual);
at::Tensor linear_backward(const at::Tensor& dy, const at::Tensor& w);
void add_weight_grad(at::Tensor& grad, const at::Tensor& dy, const at::Tensor& x);

/// The next token of each row of logits (B, V) by the rules of choose() (sampler.h); u (B) float64 decides.
/// -> (2, B) float64: the token, and its log-prob, NaN where choose() would throw.
at::Tensor sample_rows(const at::Tensor& logits, const at::Tensor& u, const SamplingParams& params);

/// The Euclidean norm of a flat float32 tensor, its squares summed in float64.
double norm_of(const at::Tensor& flat);

}  // namespace aten
}  // namespace rapo::ops
