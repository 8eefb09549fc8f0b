// The writers: warps that turn an item's squares into bits while the consumers work on the next item.
#pragma once

#include "sampleattn/sm90/adaptive/squares.h"

namespace sampleattn::sm90::adaptive {

template <class C>
struct Writer {
  Arguments const& args;
  SharedStorage<C>& shared;

  CUTE_DEVICE static int lane() { return threadIdx.x % 32; }

  CUTE_DEVICE void run() {
    int const first_word = threadIdx.x / 32 - 1;
    for (int round = 0; item_of_round(round, blockIdx.x, gridDim.x) < args.item_count; ++round) {
      int const slot = round % 2;
      wait_full(shared.squares_barrier[slot], round / 2 % 2);
      for (int i = 0; i < 2; ++i) {
        if (shared.item[slot].tile[i].row >= args.q_len) continue;
        for (int word = first_word; word < args.mask_words; word += C::kWriters) write_word(slot, i, word);
      }
      TransactionBarrier::arrive(&shared.query_barrier[slot].empty);  // every lane, for it has read
    }
  }

  CUTE_DEVICE void write_word(int slot, int i, int word) {
    uint32_t bits = 0;
    for (int quad = word * 8; quad < word * 8 + 8 && quad * 4 < shared.item[slot].tile[i].end; ++quad) {
      bits |= kept_of(slot, i, quad) << (quad % 8 * 4);
    }
    Item const& item = shared.item[slot];
    QueryBlock const& tile = item.tile[i];
    int const block = word * 32 + lane();
    bool keep = (bits >> lane() & 1) || block >= tile.end || block == item.sink;
    keep = keep && block < tile.behind && args.visible[item.batch * args.visible_stride + block];
    bits = __ballot_sync(0xffffffffu, keep);
    if (lane() != 0) return;
    uint32_t const row = uint32_t(item.batch * args.heads_q + tile.head) * args.q_blocks() + tile.row / kBlock;
    args.block_mask[uint64_t(row) * args.mask_words + word] = bits;
  }

  // Four bits: the squared shares of the tile's rows in each block of the quad sum to tau squared.
  CUTE_DEVICE uint32_t kept_of(int slot, int i, int quad) const {
    uint32_t const* squares = squares_of(args, slot, quad, i, 0) + lane();
    float sum = 0.f;
    CUTE_UNROLL
    for (int warp = 0; warp < 8; ++warp) {
      uint32_t const packed = __ldcg(squares + warp * 32);
      // One factor after the other: the square of a large total's inverse is no float.
      float2 const scale = shared.inverse_total[slot][i][warp][lane() / 4];
      sum = fmaf(low_square(packed) * scale.x, scale.x, fmaf(high_square(packed) * scale.y, scale.y, sum));
    }
    CUTE_UNROLL
    for (int step = 4; step < 32; step *= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    return __ballot_sync(0xffffffffu, sum >= args.tau_squared) & 0xfu;
  }
};

}  // namespace sampleattn::sm90::adaptive
