// Prepares a call on the device: the work list, longest tile first, and the segment ranges of rows and keys.
#pragma once

#include <cuda_runtime.h>

#include "block_sparse_attention/cuda/arguments.h"

namespace sampleattn {

// Fills args.work, args.next_work and the segment ranges. No host synchronisation.
cudaError_t build_work_list(Arguments const& args, cudaStream_t stream);

}  // namespace sampleattn
