// Which instruction set the kernels run on.
#pragma once

#include <string>
#include <vector>

#include "row.h"

namespace rapo {

/// The fastest that this machine has, or the one that the environment variable RAPO_KERNELS_ISA names.
const RowKernels& row_kernels();

/// Names of those that this machine can run, fastest first.
std::vector<std::string> available_isas();

/// Takes the named one from now on; "" restores the default. Throws kInvalidArgument for one that is not
/// available.
void select_isa(const std::string& name);

}  // namespace rapo
