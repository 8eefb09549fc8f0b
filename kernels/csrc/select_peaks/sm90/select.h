// Entry point of the kernels. Each head dim is compiled in a file of its own, from head_dim.cu.in.
#pragma once

#include "select_peaks/cuda/arguments.h"
#include "shared/cuda/error.h"

namespace sampleattn::sm90::peaks {

template <int kHeadDim>
Error select(sampleattn::peaks::Arguments const& args, int thread_blocks, cudaStream_t stream);

}  // namespace sampleattn::sm90::peaks
