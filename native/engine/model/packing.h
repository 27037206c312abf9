// Splits a micro-batch into the chunks that go through the models.
#pragma once

#include <cstdint>
#include <vector>

#include "ops/trunk_input.h"
#include "types.h"

namespace rapo {

/// A part of a micro-batch that goes through the models at once.
struct TrainChunk {
  TrunkInput input;
  std::vector<std::int64_t> rows;       // (n) indices of rows of the micro-batch
  std::vector<std::int64_t> positions;  // (n) rows[i] belongs to this row of the trunk's output
};

/// Splits a micro-batch into chunks of about chunk_tokens tokens. Neighbouring sequences with the same prompt
/// (the tokens up to the first trained row) become a family, so that the prompt is computed once for its
/// group. Rows of weight 0, sequences whose rows all have weight 0, and tokens after a sequence's last row
/// are left out, because no result depends on them.
std::vector<TrainChunk> plan_chunks(const MicroBatch& batch, std::int64_t chunk_tokens);

}  // namespace rapo
