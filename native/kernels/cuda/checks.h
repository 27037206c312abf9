// Checks of a call's arguments before anything is sent to a device. Every failure is kInvalidArgument.
#pragma once

#include "../rows.h"
#include "calls.h"
#include "fused_head.h"

namespace rapo::cuda {

/// If a batch has rows, its sequence offsets must name at least one sequence.
void check_sequences(const Batch& batch);

/// The check of overlaps that validate_loss makes, for the arrays of the head.
void check_head_overlaps(const FusedHead& head, const Outputs& outputs, const HeadWorkspace& workspace);

/// Checks shapes, dtypes and strides, and that no required array is missing.
void validate_head(const FusedHead& head, const Objective& objective, const Outputs& outputs);

}  // namespace rapo::cuda
