// What is checked of a call before anything is sent to a device. Every failure is kInvalidArgument.
#pragma once

#include "../rows.h"
#include "calls.h"
#include "fused_head.h"

namespace rapo::cuda {

/// Sequence offsets of a batch that has rows must name at least one sequence.
void check_sequences(const Batch& batch);

/// What validate_loss's check of overlaps is for the head.
void check_head_overlaps(const FusedHead& head, const Outputs& outputs, const HeadWorkspace& workspace);

/// Shapes, dtypes, strides and missing arrays of a fused head's call.
void validate_head(const FusedHead& head, const Objective& objective, const Outputs& outputs);

}  // namespace rapo::cuda
