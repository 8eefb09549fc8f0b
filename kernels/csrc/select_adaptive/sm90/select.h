// Entry point of the selection kernels. Each head dim is compiled in a file of its own, from head_dim.cu.in.
#pragma once

#include "select_adaptive/cuda/arguments.h"
#include "shared/cuda/error.h"

namespace sampleattn::sm90::adaptive {

template <int kHeadDim>
Error select(sampleattn::adaptive::Arguments const& args, int thread_blocks, cudaStream_t stream);

}  // namespace sampleattn::sm90::adaptive
