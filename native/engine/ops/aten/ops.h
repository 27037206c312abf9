// The operations in ATen calls, which run on any device that libtorch has.
#pragma once

#include <cstdint>

#include "ops/ops.h"

namespace rapo::ops {

/// Keys and values of the sequences that are being decoded: row s of the batch has place s.
struct Block {
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

inline at::Tensor wide(const at::Tensor& x) { return x.to(at::kFloat); }

inline at::TensorOptions options_of(const at::Tensor& like, at::ScalarType type) {
  return like.options().dtype(type);
}

/// A copy of host memory, int64, on the device of `like`.
at::Tensor indices(const std::int32_t* ids, std::int64_t count, const at::Tensor& like);
at::Tensor indices(const std::int64_t* ids, std::int64_t count, const at::Tensor& like);
/// table[rows[i]] += x[i] in the order of i: index_add_'s order is fixed on the CPU alone, index_put_'s on
/// CUDA.
void add_rows(at::Tensor& table, const at::Tensor& rows, const at::Tensor& x);

// attention.cpp
/// lse is attention_backward()'s alone: its shape depends on how it was computed.
at::Tensor attention(const HeadShape& shape, const TrunkInput& input, const Rope& rope, const at::Tensor& qkv,
                     at::Tensor* lse, at::Tensor* kv);
at::Tensor attention_backward(const HeadShape& shape, const TrunkInput& input, const Rope& rope,
                              const at::Tensor& qkv, const at::Tensor& out, const at::Tensor& lse,
                              const at::Tensor& dout);
void place_batch(DecodeBatch& batch, const Block& cache, const Rope& rope);
/// qkv (B, (H + 2K) D) of the batch's tokens -> (B, H D); their keys and values are put into the cache.
at::Tensor decode_attention(const HeadShape& shape, const Block& cache, std::int64_t layer,
                            const DecodeBatch& batch, const at::Tensor& qkv);

}  // namespace aten
}  // namespace rapo::ops
