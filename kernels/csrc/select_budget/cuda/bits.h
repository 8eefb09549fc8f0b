// From the logarithms of sampled rows to the index.
#pragma once

#include "select_budget/cuda/arguments.h"
#include "shared/cuda/error.h"

namespace sampleattn::budget {

Error write_bits(Arguments const& args, cudaStream_t stream);

}  // namespace sampleattn::budget
