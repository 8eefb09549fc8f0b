// Entry point of the kernels that score sampled rows. Each head dim is compiled in a file of its own, from head_dim.cu.in.
#pragma once

#include "select_budget/cuda/arguments.h"
#include "shared/cuda/error.h"

namespace sampleattn::sm90::budget {

// The logarithms of one batch of query blocks.
template <int kHeadDim>
Error score(sampleattn::budget::Arguments const& args, int multiprocessors, cudaStream_t stream);

}  // namespace sampleattn::sm90::budget
