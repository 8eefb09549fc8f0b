#include "shared/cuda/visible_blocks.h"

#include "shared/visibility.h"

namespace sampleattn {
namespace {

constexpr int kThreads = 1024;

// One thread block a batch entry; a warp looks at the keys of a block.
__global__ void find_visible(const __grid_constant__ VisibleBlocks args) {
  __shared__ int first, end;
  int const lane = threadIdx.x % 32, n = args.n();
  int32_t const* key_segment = args.key_segment + blockIdx.x * args.key_segment_stride;
  if (threadIdx.x == 0) {
    first = n;
    end = 0;
  }
  __syncthreads();
  for (int block = threadIdx.x / 32; block < n; block += kThreads / 32) {
    int const key = block * kBlock, behind = min(key + kBlock, args.kv_len);
    bool const seen = __any_sync(0xffffffffu, any_visible_key(key_segment, key + lane, behind, 32));
    if (lane == 0) {
      args.visible[int64_t(blockIdx.x) * n + block] = seen;
      if (seen) atomicMin(&first, block);
    }
  }
  if (args.row_ends) {
    int row = args.q_len - 1 - int(threadIdx.x);
    while (row >= 0 && is_padding(key_segment, row + args.q_offset + row / kBlock * args.q_gap, args.kv_len))
      row -= kThreads;
    if (row >= 0) atomicMax(&end, row + 1);
  }
  __syncthreads();
  if (threadIdx.x > 0) return;
  args.sinks[blockIdx.x] = args.keep_sink ? first : n;
  if (args.row_ends) args.row_ends[blockIdx.x] = end;
}

}  // namespace

Error find_visible_blocks(VisibleBlocks const& args, cudaStream_t stream) {
  find_visible<<<args.entries(), kThreads, 0, stream>>>(args);
  return to_error(cudaGetLastError());
}

}  // namespace sampleattn
