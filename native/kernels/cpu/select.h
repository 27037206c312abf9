// The choice of the instruction set that the kernels run on.
#pragma once

#include <string>
#include <vector>

#include "row.h"

namespace rapo {

/// The fastest kernels that this machine can run, or those that the environment variable RAPO_KERNELS_ISA
/// names.
const RowKernels& row_kernels();

/// Names of the instruction sets that this machine can run, fastest first.
std::vector<std::string> available_isas();

/// Uses the named instruction set from now on; "" restores the default. Throws kInvalidArgument if it is not
/// available.
void select_isa(const std::string& name);

}  // namespace rapo
