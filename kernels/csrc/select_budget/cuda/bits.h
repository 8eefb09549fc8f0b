// From the logarithms of sampled rows to the index.
#pragma once

#include "select_budget/cuda/arguments.h"
#include "select_budget_rest/cuda/rest.h"
#include "shared/cuda/error.h"

namespace sampleattn::budget {

// rest: null, or what is written beside the index, of blocks that it leaves out.
Error write_bits(Arguments const& args, Rest const* rest, cudaStream_t stream);

}  // namespace sampleattn::budget
