// Means of key blocks, by which blocks that were dropped are taken.
#pragma once

#include <cuda_runtime.h>

#include "block_sparse_attention/cuda/arguments.h"

namespace sampleattn {

// Fills mean_key, mean_value and mean_terms. The latter: what a row's unscaled score with the mean key grows by for the
// number of valid keys (-inf: none), and the mean squared distance of these keys from their mean, per dimension.
// A mean that is not finite becomes zero and its block's first term NaN, so that it reaches the rows that drop the block,
// and no others.
cudaError_t average_blocks(Arguments const& args, cudaStream_t stream);

}  // namespace sampleattn
