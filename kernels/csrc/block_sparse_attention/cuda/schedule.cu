#include "block_sparse_attention/cuda/schedule.h"

#include <algorithm>

#include "block_sparse_attention/cuda/tile.h"

namespace sampleattn {
namespace {

constexpr int kBuckets = 1024;
// Keys and values of the heads that are worked on at a time should stay in the L2 cache.
constexpr int64_t kCacheBytes = 24 << 20;

// One warp a tile: how many key blocks it keeps, or the means that it takes are worth.
__global__ void count_blocks(const __grid_constant__ Arguments args) {
  int const lane = threadIdx.x % 32;
  int const tile_index = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
  if (blockIdx.x == 0 && threadIdx.x == 0) *args.next_work = 0;
  if (tile_index >= args.tiles()) return;
  Tile const tile = locate_tile(args, tile_index);
  BlockRange const range = allowed_blocks(args, tile);
  uint32_t const* row = mask_row(args, tile);
  int blocks = 0;
  for (int word = range.first / 32 + lane; word * 32 <= range.last; word += 32) {
    blocks += __popc(allowed_word(row, range, word));
  }
  blocks = __reduce_add_sync(0xffffffffu, blocks);
  if (args.mean_terms) blocks += (blocks_behind(args, tile) + kMeanTile - 1) / kMeanTile * (kMeanTile / args.block_k);
  if (lane == 0) args.tile_blocks[tile_index] = blocks;
}

// One thread block sorts `tiles_per_group` tiles by their number of blocks, most first (a counting sort).
__global__ void sort_tiles(const __grid_constant__ Arguments args, int tiles_per_group, int shift) {
  __shared__ int position[kBuckets];
  __shared__ int warp_total[32];
  int const begin = blockIdx.x * tiles_per_group;
  int const end = min(begin + tiles_per_group, args.tiles());
  int const lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  auto bucket = [&](int blocks) { return kBuckets - 1 - min(blocks >> shift, kBuckets - 1); };

  position[threadIdx.x] = 0;
  __syncthreads();
  for (int tile = begin + threadIdx.x; tile < end; tile += kBuckets) {
    atomicAdd(&position[bucket(args.tile_blocks[tile])], 1);
  }
  __syncthreads();

  int const own = position[threadIdx.x];
  int sum = own;
  for (int step = 1; step < 32; step *= 2) {
    int const below = __shfl_up_sync(0xffffffffu, sum, step);
    if (lane >= step) sum += below;
  }
  if (lane == 31) warp_total[warp] = sum;
  __syncthreads();
  int before = 0;
  for (int other = 0; other < warp; ++other) before += warp_total[other];
  position[threadIdx.x] = before + sum - own;
  __syncthreads();

  for (int tile = begin + threadIdx.x; tile < end; tile += kBuckets) {
    int const blocks = args.tile_blocks[tile];
    args.work[begin + atomicAdd(&position[bucket(blocks)], 1)] = {tile, blocks};
  }
}

// One warp a run of rows: the range of its segment ids.
__global__ void find_segment_ranges(int32_t const* segment, int64_t stride, int length, int run, SegmentRange* ranges) {
  int const lane = threadIdx.x % 32;
  int const index = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
  int const runs = (length + run - 1) / run;
  if (index >= runs) return;
  int lowest = INT32_MAX, highest = INT32_MIN;
  for (int i = index * run + lane; i < min((index + 1) * run, length); i += 32) {
    int const id = segment ? segment[blockIdx.y * stride + i] : 0;
    lowest = min(lowest, id);
    highest = max(highest, id);
  }
  lowest = __reduce_min_sync(0xffffffffu, lowest);
  highest = __reduce_max_sync(0xffffffffu, highest);
  if (lane == 0) ranges[blockIdx.y * runs + index] = {lowest, highest};
}

}  // namespace

cudaError_t build_work_list(Arguments const& args, cudaStream_t stream) {
  constexpr int kWarps = 8;
  if (args.key_segment) {
    int const query_batch = args.query_segment_stride ? args.batch : 1;
    int const key_batch = args.key_segment_stride ? args.batch : 1;
    find_segment_ranges<<<dim3(ceil_div(args.q_tiles(), kWarps), query_batch), kWarps * 32, 0, stream>>>(
        args.query_segment, args.query_segment_stride, args.q_len, kTileRows, args.query_range);
    find_segment_ranges<<<dim3(ceil_div(args.key_runs(), kWarps), key_batch), kWarps * 32, 0, stream>>>(
        args.key_segment, args.key_segment_stride, args.kv_len, kKeyRun, args.key_range);
  }
  count_blocks<<<ceil_div(args.tiles(), kWarps), kWarps * 32, 0, stream>>>(args);

  int64_t const bytes_per_head = int64_t(args.kv_len) * (args.head_dim + args.value_head_dim) * 2;
  int const kv_heads = args.batch * args.kv_heads;
  int const heads_at_a_time = int(std::clamp<int64_t>(kCacheBytes / bytes_per_head, 1, kv_heads));
  int const tiles_per_group = heads_at_a_time * (args.q_heads / args.kv_heads) * args.q_tiles();
  int shift = 0;
  while ((ceil_div(args.kv_len, args.block_k) >> shift) >= kBuckets) ++shift;
  sort_tiles<<<ceil_div(args.tiles(), tiles_per_group), kBuckets, 0, stream>>>(args, tiles_per_group, shift);
  return cudaGetLastError();
}

}  // namespace sampleattn
