// A key/value cache for devices: one block of memory with a place for each sequence, as long as the longest
// sequence can become. A step reads nothing back but the sampled tokens. With CUDA a step is captured in a
// graph.
#include <ATen/ops/stack.h>

#include <algorithm>
#include <unordered_map>

#include "cuda/device.h"
#include "generate/cache.h"
#include "model/memory.h"
#include "ops/aten/ops.h"

namespace rapo {
namespace {

/// Batch size and context are rounded up so that few distinct shapes occur; each shape is captured as one
/// CUDA graph.
std::int64_t step_rows(std::int64_t running) {
  if (running <= 8) {
    std::int64_t rows = 1;
    while (rows < running) rows *= 2;
    return rows;
  }
  const std::int64_t multiple = running <= 64 ? 8 : 32;
  return (running + multiple - 1) / multiple * multiple;
}
constexpr std::int64_t kStepPositions = 256;

class BlockCache : public Cache {
 public:
  BlockCache(Model& model, const SamplingParams& sampling, const CacheDemand& demand)
      : model_(model), sampling_(sampling), graphs_(model.flat.device()) {
    const ModelConfig& c = model.net.config();
    limit_ = sampling.max_batch;
    if (limit_ == 0) {
      // The rest of the memory is left for a layer's temporaries and for graphs.
      const std::int64_t free =
          model.flat.is_cpu() ? demand.bytes : device::free_bytes(model.flat.device()) / 10 * 8;
      limit_ = device_running_limit(c, model.element_size(), demand.positions, free);
    }
    limit_ = std::min(limit_, demand.completions);
    const auto of = [&](at::ScalarType type) { return model.flat.options().dtype(type); };
    block_.keys =
        at::zeros({c.layers, limit_, demand.positions, c.kv_heads, c.head_dim}, model.flat.options());
    block_.values = at::zeros_like(block_.keys);
    token_ids_ = at::zeros({limit_}, of(at::kLong));
    lengths_ = at::zeros({limit_}, of(at::kLong));
    uniforms_ = at::zeros({limit_}, of(at::kDouble));
    choices_ = at::zeros({2, limit_}, of(at::kDouble));
    model.net.rope(demand.positions,
                   model.weights.embed);  // now, since a graph expects the tables to stay where they are
  }

  std::int64_t limit() const override { return limit_; }

  std::vector<Id> take(const KeyValues& layers, const std::vector<Span>& prompts) override {
    const auto kv = at::stack(layers);
    std::vector<Id> ids;
    ids.reserve(prompts.size());
    for (const auto& [begin, length] : prompts) {
      prompts_.emplace(next_, kv.narrow(1, begin, length));
      ids.push_back(next_++);
    }
    return ids;
  }

  Id branch(Id prompt, bool is_last) override {
    const auto found = prompts_.find(prompt);
    const auto& kv = found->second;
    const std::int64_t length = kv.size(1), at = running();
    const auto halves = kv.view({kv.size(0), length, 2, block_.keys.size(3), -1});
    place(block_.keys, at, length).copy_(halves.select(2, 0));
    place(block_.values, at, length).copy_(halves.select(2, 1));
    if (is_last) prompts_.erase(found);
    places_.push_back({next_, length});
    is_stale_ = true;
    return next_++;
  }

  at::Tensor save(Id sequence, std::int64_t length) override {
    const auto found = std::find_if(places_.begin(), places_.end(),
                                    [sequence](const Place& p) { return p.sequence == sequence; });
    const auto at = static_cast<std::int64_t>(found - places_.begin());
    const auto halves = at::stack({place(block_.keys, at, length), place(block_.values, at, length)}, 2);
    return halves.reshape({halves.size(0), length, -1});
  }

  Id restore(const at::Tensor& saved, std::int64_t /*length*/) override {
    prompts_.emplace(next_, saved);
    return next_++;
  }

  /// When a sequence ends, the last sequence moves into its place.
  void drop(const std::vector<Id>& sequences) override {
    const auto ends = [&](const Place& p) {
      return std::find(sequences.begin(), sequences.end(), p.sequence) != sequences.end();
    };
    for (std::size_t i = 0; i < places_.size();) {
      if (!ends(places_[i])) {
        ++i;
        continue;
      }
      if (i + 1 < places_.size()) {
        const Place& last = places_.back();
        for (const at::Tensor* cache : {&block_.keys, &block_.values}) {
          place(*cache, static_cast<std::int64_t>(i), last.length)
              .copy_(place(*cache, running() - 1, last.length));
        }
        places_[i] = last;
      }
      places_.pop_back();
      is_stale_ = true;
    }
  }

  /// A step computes more rows than there are sequences. Nobody reads the results of the additional rows.
  std::vector<Choice> step(const std::vector<Row>& rows) override {
    std::unordered_map<Id, const Row*> by_id;
    for (const Row& row : rows) by_id.emplace(row.sequence, &row);
    std::vector<double> uniforms;
    std::int64_t longest = 0;
    for (Place& p : places_) {
      const Row& row = *by_id.at(p.sequence);
      uniforms.push_back(row.u);
      longest = std::max(longest, row.length);
      // The last step clamped the device's lengths to reach_; a longer sequence makes them stale.
      // A token of a prompt is not the one that the last step sampled.
      is_stale_ = is_stale_ || row.length > reach_ || row.token != p.token;
      p.length = row.length + 1;
    }
    if (is_stale_) tell_rows(by_id);
    uniforms_.narrow(0, 0, running()).copy_(tensor_of(uniforms));
    const std::int64_t batch_rows = std::min(limit_, step_rows(running()));
    reach_ = std::min(block_.positions(), (longest / kStepPositions + 1) * kStepPositions) - 1;
    graphs_.run(batch_rows * (block_.positions() + 1) + reach_, [&] { decode(batch_rows, reach_); });
    const auto sampled = choices_of(choices_.narrow(1, 0, running()));
    std::unordered_map<Id, Choice> choices;
    for (std::size_t i = 0; i < places_.size(); ++i) {
      choices.emplace(places_[i].sequence, sampled[i]);
      places_[i].token = sampled[i].token;
    }
    std::vector<Choice> out;
    out.reserve(rows.size());
    for (const Row& row : rows) out.push_back(choices.at(row.sequence));
    return out;
  }

  std::vector<Choice> sample(const at::Tensor& logits, const std::vector<double>& uniforms) override {
    return choices_of(sample_aten(logits, tensor_of(uniforms).to(logits.device()), sampling_));
  }

 private:
  struct Place {
    Id sequence;
    std::int64_t length;      // tokens in the cache
    std::int32_t token = -1;  // what the last step sampled, which the device holds as the next token
  };

  std::int64_t running() const { return static_cast<std::int64_t>(places_.size()); }

  /// The first `length` positions of a place: (layers, length, K, D).
  static at::Tensor place(const at::Tensor& cache, std::int64_t index, std::int64_t length) {
    return cache.select(1, index).narrow(1, 0, length);
  }

  /// The part of a step that a graph holds: it reads and writes only tensors that stay where they are.
  void decode(std::int64_t rows, std::int64_t longest) {
    Qwen2& net = model_.net;
    const auto& embed = model_.weights.embed;
    ops::DecodeBatch batch;
    batch.token_ids = token_ids_.narrow(0, 0, rows);
    batch.lengths = lengths_.narrow(0, 0, rows);
    batch.longest = longest;
    ops::aten::place_batch(batch, block_, net.rope(longest + 1, embed));
    const auto hidden =
        net.decode(model_.weights, model_.for_generation(), embed.index_select(0, batch.token_ids),
                   [&](std::int64_t layer, const at::Tensor& qkv) {
                     return ops::aten::decode_attention(net.head_shape(), block_, layer, batch, qkv);
                   });
    const auto logits = net.ops().linear(hidden, model_.for_generation().head, {});
    const auto choices = sample_aten(logits, uniforms_.narrow(0, 0, rows), sampling_);
    choices_.narrow(1, 0, rows).copy_(choices);
    token_ids_.narrow(0, 0, rows).copy_(choices.select(0, 0));
    lengths_.narrow(0, 0, rows).add_(1).clamp_max_(longest);  // step() mends a running one that this cuts
  }

  /// Copies the token and the length of every place to the device. Places without a sequence get length 0.
  void tell_rows(const std::unordered_map<Id, const Row*>& by_id) {
    auto host = at::zeros({2, limit_}, at::kLong);
    auto* values = host.data_ptr<std::int64_t>();
    for (std::size_t i = 0; i < places_.size(); ++i) {
      const Row& row = *by_id.at(places_[i].sequence);
      values[i] = row.token;
      values[static_cast<std::size_t>(limit_) + i] = row.length;
    }
    token_ids_.copy_(host.select(0, 0));
    lengths_.copy_(host.select(0, 1));
    is_stale_ = false;
  }

  Model& model_;
  const SamplingParams& sampling_;
  std::int64_t limit_ = 0;  // places
  ops::Block block_;
  // Per place, on the device, at addresses that graphs hold: the next token, the length, the random number
  // and the choice.
  at::Tensor token_ids_, lengths_, uniforms_, choices_;
  bool is_stale_ = true;     // the device's tokens or lengths are not those of the sequences
  std::int64_t reach_ = -1;  // the largest length that the last step could leave on the device
  device::Graphs graphs_;
  std::vector<Place> places_;
  std::unordered_map<Id, at::Tensor> prompts_;  // (layers, length, 2 K D): views of the prefill's result
  Id next_ = 0;
};

}  // namespace

std::unique_ptr<Cache> make_block_cache(Model& model, const SamplingParams& sampling,
                                        const CacheDemand& demand) {
  return std::make_unique<BlockCache>(model, sampling, demand);
}

}  // namespace rapo
