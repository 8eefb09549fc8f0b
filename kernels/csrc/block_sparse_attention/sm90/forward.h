// Entry points of the attention kernels. Each head dim is compiled in a file of its own, from head_dim.cu.in.
#pragma once

#include "block_sparse_attention/cuda/arguments.h"
#include "shared/cuda/error.h"

namespace sampleattn::sm90 {

template <int kHeadDim, int kHeadDimV>
Error forward(Arguments const& args, int multiprocessors, cudaStream_t stream);

// Takes dropped blocks by their means.
template <int kHeadDim, int kHeadDimV>
Error forward_with_means(Arguments const& args, int multiprocessors, cudaStream_t stream);

}  // namespace sampleattn::sm90
