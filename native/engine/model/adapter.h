// LoRA (arXiv 2106.09685): matrices of a layer get a low-rank term, y = W x + s B (A x), of which A and B
// alone are trained. Symbols: R rows (tokens), K columns of W, N rows of W, r rank, P matrices that share W's
// product.
#pragma once

#include <string>
#include <vector>

#include "control.h"
#include "model/layout.h"
#include "ops/aten.h"
#include "ops/ops.h"
#include "types.h"

namespace rapo {

/// The low-rank terms of one matrix of LayerTensors, such as q, k and v of qkv.
struct LowRank {
  struct Part {
    std::int64_t column = 0;  // where the part's outputs begin
    at::Tensor b;             // (N of the part, r)
  };
  at::Tensor a;             // (P r, K); undefined if there is no part
  std::vector<Part> parts;  // (P)
};

struct AdapterLayer {
  LowRank qkv, o, gate_up, down;
};

/// Views of a flat buffer, one entry per layer. The numbers are the adapter's weights or their gradients.
using AdapterTensors = std::vector<AdapterLayer>;

/// The adapter's tensors, named as PEFT names them in adapter_model.safetensors.
class AdapterLayout : public FlatLayout {
 public:
  AdapterLayout(const ModelConfig& config, const LoraOptions& options);
  AdapterTensors map(const at::Tensor& flat) const;
  /// Elements of the model's matrices that have a term, all layers together.
  std::int64_t adapted_size(const ModelConfig& config) const;

 private:
  struct Part {
    std::string name;  // such as self_attn.q_proj
    std::int64_t column, rows;
  };
  struct Group {
    LowRank AdapterLayer::* member;
    std::int64_t columns;
    std::vector<Part> parts;
  };
  std::int64_t layers_;
  std::vector<Group> groups_;  // of each layer
};

/// An adapter with its weights.
class Adapter {
 public:
  /// Reads options.file; if that is empty, A is uniform in ±1 / sqrt(K), as in PEFT, and B is 0. The numbers
  /// of the file may have any type that a model's weights may have. Throws kFormat if the file does not hold
  /// exactly these tensors.
  Adapter(const ModelConfig& config, const LoraOptions& options, DType dtype, at::Device device,
          const Control& control);

  AdapterLayout layout;
  double scaling;
  at::Tensor master;       // (flat_size) float32
  at::Tensor flat;         // of the model's dtype; master itself if that is float32
  AdapterTensors tensors;  // views of flat

  /// weight + s B A (N, K), from A and B as the products take them, of the weight's dtype and on its device.
  /// bfloat16 is rounded stochastically: most updates are smaller than half the distance of two bfloat16
  /// numbers, and the nearest number would be the weight without them.
  at::Tensor merged(const ops::Backend& ops, const at::Tensor& weight, const LowRank& low,
                    const ops::RoundingNumbers& numbers) const;

  /// s B A (N, K) for the model's tensor of that name, float32 on the CPU; undefined if it has no such term.
  at::Tensor delta(const std::string& weight) const;

 private:
  void read(const std::string& file, const Control& control);
  void initialize(std::uint64_t seed);
};

/// A low-rank term prepared for products. parts is empty if there is none.
struct ReadyLowRank {
  struct Part {
    std::int64_t column = 0;
    ops::Linear b;
  };
  ops::Linear a;
  std::vector<Part> parts;
  double scaling = 1;

  ReadyLowRank() = default;
  ReadyLowRank(const ops::Backend& ops, const LowRank& weights, double scaling);

  /// s x A^T: (R, K) -> (R, P r).
  at::Tensor down(const ops::Backend& ops, const at::Tensor& x) const;
  /// Adds low B^T, low from down(), to y (R, N).
  void add_up(const ops::Backend& ops, const at::Tensor& low, at::Tensor& y) const;
  /// Of y = s B (A x): adds the gradients of A and B to grads, and x's to dx (R, K) if that is defined.
  void backward(const ops::Backend& ops, const at::Tensor& dy, const at::Tensor& x, const at::Tensor& low,
                LowRank& grads, at::Tensor& dx) const;
};

}  // namespace rapo
