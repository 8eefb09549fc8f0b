// Entry points of the sm_80 kernels, one a head dim; each file of kernels/csrc/cuda/sm80 compiles one. Names: head dims
// of keys and of values.
#pragma once

#include "sampleattn/cuda/arguments.h"
#include "sampleattn/cuda/error.h"

namespace sampleattn::sm80 {

// Shared memory of a thread block: a tile of queries, a run of keys and one of values. kernels/choice.py knows it too.
constexpr int shared_bytes(int head_dim, int head_dim_v) {
  return 2 * ((kTileRows + kKeyRun) * head_dim + kKeyRun * head_dim_v);
}

Error forward_64_64(Arguments const& args, cudaStream_t stream);
Error forward_96_96(Arguments const& args, cudaStream_t stream);
Error forward_128_128(Arguments const& args, cudaStream_t stream);
Error forward_192_128(Arguments const& args, cudaStream_t stream);
Error forward_192_192(Arguments const& args, cudaStream_t stream);
Error forward_256_256(Arguments const& args, cudaStream_t stream);

}  // namespace sampleattn::sm80
