// Entry points of the sm_90a kernels, one a head dim; each file of kernels/csrc/cuda/sm90 compiles one. Names: head dims of keys and of values.
#pragma once

#include "sampleattn/cuda/arguments.h"
#include "sampleattn/cuda/error.h"

namespace sampleattn::sm90 {

Error forward_64_64(Arguments const& args, int multiprocessors, cudaStream_t stream);
Error forward_96_96(Arguments const& args, int multiprocessors, cudaStream_t stream);
Error forward_128_128(Arguments const& args, int multiprocessors, cudaStream_t stream);
Error forward_192_128(Arguments const& args, int multiprocessors, cudaStream_t stream);
Error forward_192_192(Arguments const& args, int multiprocessors, cudaStream_t stream);
Error forward_256_256(Arguments const& args, int multiprocessors, cudaStream_t stream);

// These take dropped blocks by their means.
Error means_64_64(Arguments const& args, int multiprocessors, cudaStream_t stream);
Error means_128_128(Arguments const& args, int multiprocessors, cudaStream_t stream);

}  // namespace sampleattn::sm90
