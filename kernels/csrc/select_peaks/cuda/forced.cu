#include "select_peaks/cuda/forced.h"

namespace sampleattn::peaks {
namespace {

constexpr int kThreads = 256;

// Bits [first, behind) of a word whose first block is `begin`.
__device__ uint32_t bits_between(int begin, int first, int behind) {
  auto below = [&](int block) {
    int const count = min(max(block - begin, 0), 32);
    return count == 32 ? ~0u : (1u << count) - 1;
  };
  return below(behind) & ~below(first);
}

// One thread a word.
__global__ void write(const __grid_constant__ Arguments args, bool everything) {
  int64_t const place = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  int64_t const rows = int64_t(args.batch) * args.q_heads * args.q_blocks();
  if (place >= rows * args.mask_words) return;
  int const word = int(place % args.mask_words);
  int64_t const row = place / args.mask_words;
  int const query_block = int(row % args.q_blocks()), head = int(row / args.q_blocks() % args.q_heads);
  int const batch = int(row / args.q_blocks() / args.q_heads), group = args.q_heads / args.kv_heads;
  auto const tile =
      adaptive::query_block(args, head / group, query_block * group + head % group, adaptive::row_end(args, batch));
  int const begin = word * 32, sink = args.keep_sink ? first_block(args, batch) : args.n();
  uint32_t bits = bits_between(begin, everything ? 0 : tile.end, tile.behind);
  bits |= bits_between(begin, sink, min(sink + 1, tile.behind));
  if (args.key_segment) {
    for (uint32_t left = bits; left; left &= left - 1) {
      int const bit = __ffs(left) - 1;
      if (!adaptive::is_visible(args, batch, begin + bit)) bits &= ~(1u << bit);
    }
  }
  args.block_mask[place] = bits;
}

}  // namespace

Error write_forced(Arguments const& args, bool everything, cudaStream_t stream) {
  int64_t const words = int64_t(args.batch) * args.q_heads * args.q_blocks() * args.mask_words;
  write<<<unsigned((words + kThreads - 1) / kThreads), kThreads, 0, stream>>>(args, everything);
  return to_error(cudaGetLastError());
}

}  // namespace sampleattn::peaks
