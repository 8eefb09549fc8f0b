// Entry points of the selection kernels of sm_90a, one a head dim; each file sm90/adaptive_*.cu compiles one.
#pragma once

#include "sampleattn/cuda/adaptive.h"
#include "sampleattn/cuda/error.h"

namespace sampleattn::sm90::adaptive {

Error select_64(sampleattn::adaptive::Arguments const& args, int thread_blocks, cudaStream_t stream);
Error select_128(sampleattn::adaptive::Arguments const& args, int thread_blocks, cudaStream_t stream);

}  // namespace sampleattn::sm90::adaptive
