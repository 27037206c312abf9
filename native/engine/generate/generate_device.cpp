#include <ATen/ops/stack.h>

#include <algorithm>
#include <cmath>
#include <string>

#include "cuda/device.h"
#include "generate/generate.h"
#include "generate/sampler.h"
#include "generate/transcript.h"
#include "model/memory.h"
#include "ops/ops_aten.h"

namespace rapo {
namespace {

/// Steps are made for so many sequences, and look back so far, that few kinds of step occur: each is a graph.
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

/// A prompt whose completions are being started.
struct Prefilled {
  std::int64_t prompt = -1, waiting = 0;  // completions not started
  at::Tensor kv;                          // (layers, length, 2 K D): a view of its chunk's
  at::Tensor logits;                      // (1, V)
};

struct Running {
  std::int64_t completion = 0, length = 0;  // length: tokens in the cache
  std::int32_t token = 0;                   // sampled, not yet in the cache
};

/// The sequence running_[i] has place i of the cache: where one ends, the last one takes its place.
class DeviceDecoder {
 public:
  DeviceDecoder(Qwen2& model, const ModelTensors& weights, const ReadyWeights& ready,
                const PackedTokens& prompts, const SamplingParams& sampling, std::int64_t cache_bytes,
                Control& control)
      : model_(model),
        weights_(weights),
        ready_(ready),
        prompts_(prompts),
        sampling_(sampling),
        control_(control),
        transcript_(prompts, sampling, control),
        total_(transcript_.total()),
        graphs_(weights.embed.device()) {
    std::int64_t positions = 0;
    for (std::int64_t p = 0; p < total_ / sampling.n; ++p) positions = std::max(positions, prompt_length(p));
    positions += sampling.max_new_tokens;
    const ModelConfig& c = model.config();
    limit_ = sampling.max_batch;
    if (limit_ == 0) {
      // Some of it is left for what passes through a layer and for graphs.
      const std::int64_t free =
          weights.embed.is_cpu() ? cache_bytes : device::free_bytes(weights.embed.device()) / 10 * 8;
      limit_ =
          device_running_limit(c, static_cast<std::int64_t>(weights.embed.element_size()), positions, free);
    }
    limit_ = std::min(limit_, total_);
    const auto of = [&](at::ScalarType type) { return weights.embed.options().dtype(type); };
    cache_.keys = at::zeros({c.layers, limit_, positions, c.kv_heads, c.head_dim}, weights.embed.options());
    cache_.values = at::zeros_like(cache_.keys);
    token_ids_ = at::zeros({limit_}, of(at::kLong));
    lengths_ = at::zeros({limit_}, of(at::kLong));
    uniforms_ = at::zeros({limit_}, of(at::kDouble));
    choices_ = at::zeros({2, limit_}, of(at::kDouble));
    model.reserve_positions(weights, positions);
  }

  Completions run() {
    // Starting is batched, as on the CPU.
    const std::int64_t worth = std::max<std::int64_t>(1, limit_ / 8);
    while (next_ < total_ || !running_.empty()) {
      control_.check();
      const std::int64_t count = std::min(limit_ - running(), total_ - next_);
      if (count > 0 && (count >= worth || count == total_ - next_ || running_.empty())) start(count);
      if (!running_.empty()) step();
    }
    return transcript_.collect();
  }

 private:
  std::int64_t running() const { return static_cast<std::int64_t>(running_.size()); }

  std::int64_t prompt_length(std::int64_t p) const {
    return prompts_.offsets[static_cast<std::size_t>(p) + 1] - prompts_.offsets[static_cast<std::size_t>(p)];
  }

  /// Starts the next `count` completions; their prompts are computed where that has not happened yet.
  void start(std::int64_t count) {
    const std::int64_t at_once =
        prefill_tokens(model_.config(), static_cast<std::int64_t>(weights_.embed.element_size()));
    const std::int64_t end = (next_ + count - 1) / sampling_.n + 1;
    while (prefilled_end_ < end) {
      std::int64_t stop = prefilled_end_ + 1;
      for (std::int64_t tokens = prompt_length(prefilled_end_); stop < end; ++stop) {
        tokens += prompt_length(stop);
        if (tokens > at_once) break;
      }
      prefill(prefilled_end_, stop);
      prefilled_end_ = stop;
    }
    const std::int64_t first = running();
    std::vector<at::Tensor> rows;
    rows.reserve(static_cast<std::size_t>(count));
    for (std::int64_t i = 0; i < count; ++i) {
      Running r;
      r.completion = next_++;
      const auto ready = std::find_if(prefilled_.begin(), prefilled_.end(), [&](const Prefilled& p) {
        return p.prompt == r.completion / sampling_.n;
      });
      r.length = ready->kv.size(1);
      const auto kv = ready->kv.view({ready->kv.size(0), r.length, 2, cache_.keys.size(3), -1});
      place(cache_.keys, first + i, r.length).copy_(kv.select(2, 0));
      place(cache_.values, first + i, r.length).copy_(kv.select(2, 1));
      rows.push_back(ready->logits);
      running_.push_back(r);
      if (--ready->waiting == 0) prefilled_.erase(ready);
    }
    set_uniforms(first, count);
    take(ops::aten::sample_rows(at::cat(rows), uniforms_.narrow(0, first, count), sampling_), first);
    settle();
    set_rows();
  }

  /// The first positions of a place: (layers, length, K, D).
  static at::Tensor place(const at::Tensor& cache, std::int64_t index, std::int64_t length) {
    return cache.select(1, index).narrow(1, 0, length);
  }

  /// Prompts [first, end): keys, values and the logits behind the last token of each.
  void prefill(std::int64_t first, std::int64_t end) {
    const auto input = plain_input(prompts_, static_cast<std::size_t>(first), static_cast<std::size_t>(end));
    std::vector<std::int64_t> last;
    last.reserve(input.families.size());
    for (const Family& prompt : input.families) last.push_back(prompt.begin + prompt.lengths[0] - 1);
    KeyValues layers;
    const auto hidden = model_.forward(weights_, ready_, input, control_, nullptr, &layers);
    const auto logits = ops::linear(ops::gather_rows(hidden, last.data(), end - first), ready_.head);
    const auto kv = at::stack(layers);
    for (std::int64_t p = first; p < end; ++p) {
      const Family& prompt = input.families[static_cast<std::size_t>(p - first)];
      prefilled_.push_back(
          {p, sampling_.n, kv.narrow(1, prompt.begin, prompt.lengths[0]), logits.narrow(0, p - first, 1)});
    }
  }

  /// One token for every running sequence. Rows beyond them compute something that nobody reads.
  void step() {
    const std::int64_t rows = std::min(limit_, step_rows(running()));
    std::int64_t longest = 0;
    for (const Running& r : running_) longest = std::max(longest, r.length);
    longest = std::min(cache_.positions(), (longest / kStepPositions + 1) * kStepPositions) - 1;
    set_uniforms(0, running());
    graphs_.run(rows * (cache_.positions() + 1) + longest, [&] {
      ops::DecodeBatch batch;
      batch.token_ids = token_ids_.narrow(0, 0, rows);
      batch.lengths = lengths_.narrow(0, 0, rows);
      batch.longest = longest;
      const auto logits = ops::linear(model_.decode(weights_, ready_, batch, cache_), ready_.head);
      const auto choices = ops::aten::sample_rows(logits, uniforms_.narrow(0, 0, rows), sampling_);
      choices_.narrow(1, 0, rows).copy_(choices);
      token_ids_.narrow(0, 0, rows).copy_(choices.select(0, 0));
      lengths_.narrow(0, 0, rows).add_(1).clamp_max_(longest);  // no running one is cut
    });
    for (Running& r : running_) ++r.length;
    take(choices_.narrow(1, 0, running()), 0);
    if (settle() || longest_is_reached(longest)) set_rows();
  }

  /// Whether the device's lengths were cut at `longest`, which the next step will be made larger for.
  bool longest_is_reached(std::int64_t longest) const {
    return std::any_of(running_.begin(), running_.end(),
                       [&](const Running& r) { return r.length > longest; });
  }

  /// The random numbers of the next tokens of places [first, first + count).
  void set_uniforms(std::int64_t first, std::int64_t count) {
    auto host = at::empty({count}, at::kDouble);
    for (std::int64_t i = 0; i < count; ++i) {
      host.data_ptr<double>()[i] =
          transcript_.next_uniform(running_[static_cast<std::size_t>(first + i)].completion);
    }
    uniforms_.narrow(0, first, count).copy_(host);
  }

  /// Tells the device of every place's token and length; those without a sequence begin again.
  void set_rows() {
    auto host = at::zeros({2, limit_}, at::kLong);
    for (std::int64_t i = 0; i < running(); ++i) {
      const Running& r = running_[static_cast<std::size_t>(i)];
      host.data_ptr<std::int64_t>()[i] = r.token;
      host.data_ptr<std::int64_t>()[limit_ + i] = r.length;
    }
    token_ids_.copy_(host.select(0, 0));
    lengths_.copy_(host.select(0, 1));
  }

  /// Records what was sampled (2, n) for the sequences from `first` on. This waits for the device.
  void take(const at::Tensor& choices, std::int64_t first) {
    const auto host = choices.to(at::kCPU).contiguous();
    const std::int64_t count = host.size(1);
    const double* values = host.data_ptr<double>();
    for (std::int64_t i = 0; i < count; ++i) {
      if (std::isnan(values[count + i])) {
        throw Error(ErrorCode::kNonFinite, "the model's logits hold NaN or an infinity");
      }
      Running& r = running_[static_cast<std::size_t>(first + i)];
      r.token = static_cast<std::int32_t>(values[i]);
      transcript_.add(r.completion, r.token, static_cast<float>(values[count + i]));
    }
    control_.done += count;
  }

  /// Ends what is at its end. Whether anything was.
  bool settle() {
    bool ended = false;
    for (std::size_t i = 0; i < running_.size();) {
      if (!transcript_.ends(running_[i].completion)) {
        ++i;
        continue;
      }
      ended = true;
      if (i + 1 < running_.size()) {
        const Running& last = running_.back();
        for (const at::Tensor* cache : {&cache_.keys, &cache_.values}) {
          place(*cache, static_cast<std::int64_t>(i), last.length)
              .copy_(place(*cache, running() - 1, last.length));
        }
        running_[i] = last;
      }
      running_.pop_back();
    }
    return ended;
  }

  Qwen2& model_;
  const ModelTensors& weights_;
  const ReadyWeights& ready_;
  const PackedTokens& prompts_;
  const SamplingParams& sampling_;
  Control& control_;
  Transcript transcript_;

  std::int64_t total_, next_ = 0;   // completions: all, and the first not started
  std::int64_t limit_ = 0;          // sequences at once
  std::int64_t prefilled_end_ = 0;  // the first prompt not computed
  ops::Cache cache_;
  // By place, on the device, where graphs expect them: the next token, the length, the random number, and
  // what was chosen.
  at::Tensor token_ids_, lengths_, uniforms_, choices_;
  device::Graphs graphs_;
  std::vector<Running> running_;
  std::vector<Prefilled> prefilled_;
};

}  // namespace

Completions generate_on_device(Qwen2& model, const ModelTensors& weights, const ReadyWeights& ready,
                               const PackedTokens& prompts, const SamplingParams& sampling,
                               std::int64_t cache_bytes, Control& control) {
  return DeviceDecoder(model, weights, ready, prompts, sampling, cache_bytes, control).run();
}

}  // namespace rapo
