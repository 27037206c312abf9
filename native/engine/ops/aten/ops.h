// The operations as ATen calls, which run on any device that libtorch supports.
#pragma once

#include <cstdint>

#include "ops/ops.h"

namespace rapo::ops {

/// Keys and values of the running sequences. Row s of a batch belongs to place s.
struct Block {
  at::Tensor keys, values;  // (layers, places, positions, K, D)

  std::int64_t places() const { return keys.size(1); }
  std::int64_t positions() const { return keys.size(2); }
};

/// One decoding step of the sequences at places 0 .. B - 1.
struct DecodeBatch {
  at::Tensor token_ids, lengths;  // (B) int64; lengths: positions in the cache
  std::int64_t longest = 0;       // at least the largest length

  // Filled in by place_batch():
  at::Tensor rows;      // (B) int64: where the new keys go, as rows of a (places * positions) matrix
  at::Tensor cos, sin;  // (B, D / 2)
};

namespace aten {

inline at::Tensor wide(const at::Tensor& x) { return x.to(at::kFloat); }

inline at::TensorOptions options_of(const at::Tensor& like, at::ScalarType type) {
  return like.options().dtype(type);
}

/// A copy of host integers on the device of `like`, int64.
at::Tensor indices(const std::int32_t* ids, std::int64_t count, const at::Tensor& like);
at::Tensor indices(const std::int64_t* ids, std::int64_t count, const at::Tensor& like);
/// table[rows[i]] += x[i] in the order of i. It uses index_add_ on the CPU and index_put_ on CUDA, since each
/// has a fixed order only there.
void add_rows(at::Tensor& table, const at::Tensor& rows, const at::Tensor& x);

// attention.cpp
/// lse is for attention_backward() only: its shape depends on the method that computed it.
at::Tensor attention(const HeadShape& shape, const TrunkInput& input, const Rope& rope, const at::Tensor& qkv,
                     at::Tensor* lse, at::Tensor* kv);
at::Tensor attention_backward(const HeadShape& shape, const TrunkInput& input, const Rope& rope,
                              const at::Tensor& qkv, const at::Tensor& out, const at::Tensor& lse,
                              const at::Tensor& dout);
void place_batch(DecodeBatch& batch, const Block& cache, const Rope& rope);
/// qkv (B, (H + 2K) D) of the batch's tokens -> (B, H D). Adds the tokens' keys and values to the cache.
at::Tensor decode_attention(const HeadShape& shape, const Block& cache, std::int64_t layer,
                            const DecodeBatch& batch, const at::Tensor& qkv);

}  // namespace aten
}  // namespace rapo::ops
