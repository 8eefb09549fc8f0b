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
    Item const& item = shared.item[slot];
    QueryBlock const& tile = item.tile[i];
    int const block = word * 32 + lane();
    float const square = word * 32 < tile.end ? squared_shares(slot, i, word, tile.end) : 0.f;
    bool keep = square >= args.tau_squared || block >= tile.end || block == item.sink;
    keep = keep && block < tile.behind && args.visible[item.batch * args.visible_stride + block];
    uint32_t const bits = __ballot_sync(0xffffffffu, keep);
    if (lane() != 0) return;
    uint32_t const row = uint32_t(item.batch * args.heads_q + tile.head) * args.q_blocks() + tile.row / kBlock;
    args.block_mask[uint64_t(row) * args.mask_words + word] = bits;
  }

  // What the squared shares of the tile's rows sum to, in the lane's block of the word's 32. Every lane reads what the
  // consumers' lanes 4 r to 4 r + 3 wrote of two warps: their rows r and r + 8, in the four blocks of a quad.
  CUTE_DEVICE float squared_shares(int slot, int i, int word, int end) const {
    float2 scale[2];
    CUTE_UNROLL
    for (int half = 0; half < 2; ++half) scale[half] = shared.inverse_total[slot][i][half * 4 + lane() / 8][lane() % 8];
    float sum[32];
    CUTE_UNROLL
    for (int quad = 0; quad < 8; ++quad) {
      CUTE_UNROLL
      for (int block = 0; block < 4; ++block) sum[quad * 4 + block] = 0.f;
      if (word * 32 + quad * 4 < end) {
        auto const* squares = reinterpret_cast<uint4 const*>(squares_of(args, slot, word * 8 + quad, i, 0)) + lane();
        CUTE_UNROLL
        for (int half = 0; half < 2; ++half) {
          uint4 const packed = __ldcg(squares + half * 32);
          add_shares(sum[quad * 4], packed.x, scale[half]);
          add_shares(sum[quad * 4 + 1], packed.y, scale[half]);
          add_shares(sum[quad * 4 + 2], packed.z, scale[half]);
          add_shares(sum[quad * 4 + 3], packed.w, scale[half]);
        }
      }
    }
    // At each step a lane passes on the half of its sums that are not those of its side, until its own block's is left.
    CUTE_UNROLL
    for (int left = 16; left > 0; left /= 2) {
      bool const upper = lane() & left;
      CUTE_UNROLL
      for (int block = 0; block < left; ++block) {
        float const other = upper ? sum[block] : sum[block + left];
        float const own = upper ? sum[block + left] : sum[block];
        sum[block] = own + __shfl_xor_sync(0xffffffffu, other, left);
      }
    }
    return sum[0];
  }

  // One factor after the other: the square of a large total's inverse is no float.
  CUTE_DEVICE static void add_shares(float& sum, uint32_t packed, float2 scale) {
    sum = fmaf(low_square(packed) * scale.x, scale.x, fmaf(high_square(packed) * scale.y, scale.y, sum));
  }
};

}  // namespace sampleattn::sm90::adaptive
