// A micro-batch as the chunks that are taken through the models.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/trunk_input.h"
#include "types.h"

namespace rapo {

/// A part of a micro-batch, taken through the models at once.
struct TrainChunk {
  TrunkInput input;
  std::vector<std::int64_t> positions;  // (n) row of the trunk's output that micro-batch row rows[i] reads
  std::vector<std::int64_t> rows;       // (n)
};

/// Splits a micro-batch into chunks of about chunk_tokens. Neighbouring sequences with the same prompt (the
/// tokens up to the first trained row) become a family: one prompt is computed once for its whole group. Rows
/// of weight 0, sequences without other rows and tokens behind a sequence's last row are left out: nothing
/// depends on them.
std::vector<TrainChunk> plan_chunks(const MicroBatch& batch, std::int64_t chunk_tokens);

}  // namespace rapo
