#include "model/packing.h"

#include <algorithm>
#include <numeric>

namespace rapo {

namespace {

/// A sequence, with those of its rows whose weight is not 0.
struct Trained {
  const std::int32_t* tokens = nullptr;
  std::int64_t length = 0;        // number of tokens
  std::int64_t begin = 0;         // index of its first token in the micro-batch
  std::vector<std::size_t> rows;  // ordered by position
  std::int64_t prompt = 0,
               used = 0;  // prompt: tokens up to the first row's, inclusive; used: up to the last row's
};

std::vector<Trained> trained_sequences(const MicroBatch& batch) {
  const auto& offsets = batch.sequences.offsets;
  std::vector<std::size_t> order;
  for (std::size_t i = 0; i < batch.row_positions.size(); ++i) {
    if (batch.rows.token_weights[i] != 0) order.push_back(i);
  }
  const auto& position = batch.row_positions;
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return position[a] < position[b]; });
  std::vector<Trained> out;
  std::size_t next = 0;
  for (std::size_t b = 0; b + 1 < offsets.size(); ++b) {
    Trained sequence;
    sequence.begin = offsets[b];
    while (next < order.size() && position[order[next]] < offsets[b + 1])
      sequence.rows.push_back(order[next++]);
    if (sequence.rows.empty()) continue;
    sequence.tokens = batch.sequences.token_ids.data() + sequence.begin;
    sequence.length = offsets[b + 1] - sequence.begin;
    sequence.prompt = position[sequence.rows.front()] - sequence.begin + 1;
    sequence.used = position[sequence.rows.back()] - sequence.begin + 1;
    out.push_back(std::move(sequence));
  }
  return out;
}

}  // namespace

std::vector<TrainChunk> plan_chunks(const MicroBatch& batch, std::int64_t chunk_tokens) {
  const std::vector<Trained> sequences = trained_sequences(batch);
  std::vector<TrainChunk> chunks;
  for (std::size_t first = 0; first < sequences.size();) {
    const Trained& head = sequences[first];
    std::size_t end = first + 1;
    std::int64_t tokens = head.used;
    for (; end < sequences.size(); ++end) {
      const Trained& s = sequences[end];
      const std::int64_t more = std::max<std::int64_t>(s.used - head.prompt, 0);
      if (s.length < head.prompt || tokens + more > chunk_tokens ||
          !std::equal(head.tokens, head.tokens + head.prompt, s.tokens))
        break;
      tokens += more;
    }
    const bool shared = end > first + 1;
    if (chunks.empty() ||
        static_cast<std::int64_t>(chunks.back().input.token_ids.size()) + tokens > chunk_tokens) {
      chunks.emplace_back();
    }
    TrainChunk& chunk = chunks.back();
    const auto base = static_cast<std::int64_t>(chunk.input.token_ids.size());
    const std::int64_t prefix = shared ? head.prompt : head.used;
    chunk.input.add(head.tokens, prefix);
    for (std::size_t i = first; i < end; ++i) {
      const Trained& s = sequences[i];
      const auto branch = static_cast<std::int64_t>(chunk.input.token_ids.size()) - prefix;
      if (shared) chunk.input.add_branch(s.tokens + prefix, std::max<std::int64_t>(s.used - prefix, 0));
      for (const std::size_t row : s.rows) {
        const std::int64_t t = batch.row_positions[row] - s.begin;
        chunk.positions.push_back((t < prefix ? base : branch) + t);
        chunk.rows.push_back(static_cast<std::int64_t>(row));
      }
    }
    first = end;
  }
  return chunks;
}

}  // namespace rapo
