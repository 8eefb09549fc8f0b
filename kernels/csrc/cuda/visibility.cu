#include "sampleattn/cuda/visibility.h"

namespace sampleattn::adaptive {
namespace {

constexpr int kThreads = 1024;

// One thread block a batch entry; a warp looks at the keys of a block.
__global__ void find_visible(const __grid_constant__ Arguments args) {
  __shared__ int first, end;
  int const lane = threadIdx.x % 32, n = args.n();
  if (threadIdx.x == 0) {
    first = n;
    end = 0;
  }
  __syncthreads();
  for (int block = threadIdx.x / 32; block < n; block += kThreads / 32) {
    bool seen = false;
    for (int key = block * kBlock + lane; !seen && key < min((block + 1) * kBlock, args.k_len); key += 32) {
      seen = args.key_segment[blockIdx.x * args.key_segment_stride + key] == 0;
    }
    seen = __any_sync(0xffffffffu, seen);
    if (lane == 0) {
      args.visible[int64_t(blockIdx.x) * n + block] = seen;
      if (seen) atomicMin(&first, block);
    }
  }
  if (args.row_ends) {
    int row = args.q_len - 1 - int(threadIdx.x);
    while (row >= 0 && is_padding(args, blockIdx.x, row)) row -= kThreads;
    if (row >= 0) atomicMax(&end, row + 1);
  }
  __syncthreads();
  if (threadIdx.x > 0) return;
  args.sinks[blockIdx.x] = args.keep_sink ? first : n;
  if (args.row_ends) args.row_ends[blockIdx.x] = end;
}

}  // namespace

Error find_visible_blocks(Arguments const& args, cudaStream_t stream) {
  find_visible<<<args.visibilities(), kThreads, 0, stream>>>(args);
  return to_error(cudaGetLastError());
}

}  // namespace sampleattn::adaptive
