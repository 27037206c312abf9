// Gradients of which each rank keeps its shard alone (ZeRO-2, arXiv 1910.02054).
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "comm/world.h"
#include "model/qwen2.h"
#include "model/shards.h"

namespace rapo {

/// A backward pass adds the gradients of a section of the layout to a buffer. When the section is complete,
/// its sum over the ranks is on the way while the pass goes on with the next section, in another buffer. All
/// ranks must make the same number of passes. The calls' controls must not be stopped by an abort, since the
/// other ranks would wait.
class ShardedGradients {
 public:
  /// Makes the tensors and hooks of `grads`, which must live as long as this.
  ShardedGradients(const Layout& layout, const Shards& shards, World& world, at::Device device,
                   Gradients& grads);

  /// what: the name of the pass's exchanges in errors.
  void begin_pass(const std::string& what, const Control& control);
  /// Exchanges also the sections that the pass has not reached, where it failed or there was none.
  void end_pass();
  /// Waits for all that is on the way. The shard (shard_size, float32) then holds the sums.
  at::Tensor& shard(const Control& control);
  /// Call only where no pass runs.
  void zero(const Control& control);

  /// Elements of all buffers and of the shard.
  static std::int64_t elements(const Layout& layout, const Shards& shards);

 private:
  struct Part {
    const Shards::Piece* piece;
    at::Tensor own;
    std::unique_ptr<Exchange> exchange;
  };
  struct Buffer {
    at::Tensor flat;
    std::vector<Part> parts;  // on the way
  };

  void begin(std::int64_t section);
  void end(std::int64_t section);
  void receive(Buffer& buffer, const Control& control);
  Buffer& buffer_of(std::int64_t section);

  const Shards& shards_;
  World& world_;
  std::int64_t sections_;
  bool tied_;
  at::Tensor shard_;
  std::vector<Buffer> buffers_;
  std::vector<std::int64_t> section_begins_;
  std::string what_;  // of the pass
  const Control* control_ = nullptr;
  std::int64_t next_ = 0;       // the section that ends next
  std::vector<bool> is_begun_;  // in this pass
};

}  // namespace rapo
