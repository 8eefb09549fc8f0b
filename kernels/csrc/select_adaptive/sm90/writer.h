// The writers: warps that turn an item's squares into bits while the consumers work on the next item.
#pragma once

#include "select_adaptive/sm90/squares.h"

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
    keep = keep && block < tile.behind && is_visible(args, item.batch, block);
    uint32_t const bits = __ballot_sync(0xffffffffu, keep);
    if (lane() != 0) return;
    uint32_t const row = uint32_t(item.batch * args.q_heads + tile.head) * args.q_blocks() + tile.row / kBlock;
    args.block_mask[uint64_t(row) * args.mask_words + word] = bits;
  }

  // What the squared shares of the tile's rows sum to, in the lane's block of the word's 32. Every lane reads what the
  // consumers' lanes 4 r to 4 r + 3 wrote of two warps: their rows r and r + 8, in the four blocks of a quad.
  CUTE_DEVICE float squared_shares(int slot, int i, int word, int end) const {
    float2 scale[2];
    CUTE_UNROLL
    for (int half = 0; half < 2; ++half)
      scale[half] = shared.inverse_square[slot][i][half * 4 + lane() / 8][lane() % 8];
    auto const* squares = reinterpret_cast<uint4 const*>(squares_of(args, slot, word * 8, i, 0)) + lane();
    auto add_quad = [&](Sums& sums, int quad) {
      if (word * 32 + quad * 4 < end) add_shares(sums, squares + quad * (kQuadStride / 4), scale);
    };
    // Sums of two quads become one's as soon as both are there: few are held at a time.
    Sums by_four[2];
    CUTE_UNROLL
    for (int odd = 0; odd < 2; ++odd) {
      Sums by_eight[2];
      CUTE_UNROLL
      for (int two = 0; two < 2; ++two) {
        Sums low, high;
        add_quad(low, two * 2 + odd);
        add_quad(high, two * 2 + odd + 4);
        by_eight[two] = exchanged(low, high, 16);
      }
      by_four[odd] = exchanged(by_eight[0], by_eight[1], 8);
    }
    Sums const of_quad = exchanged(by_four[0], by_four[1], 4);
    float const even = exchanged(of_quad.of_block[0], of_quad.of_block[2], 2);
    float const odd = exchanged(of_quad.of_block[1], of_quad.of_block[3], 2);
    return exchanged(even, odd, 1);
  }

  struct Sums {  // of the blocks of a quad
    float of_block[4] = {};
  };

  // Of two sums, a lane passes on the one that is not that of its side, and adds what it gets to the other.
  CUTE_DEVICE static float exchanged(float low, float high, int side) {
    bool const upper = lane() & side;
    return (upper ? high : low) + __shfl_xor_sync(0xffffffffu, upper ? low : high, side);
  }

  CUTE_DEVICE static Sums exchanged(Sums const& low, Sums const& high, int side) {
    Sums sums;
    CUTE_UNROLL
    for (int block = 0; block < 4; ++block) {
      sums.of_block[block] = exchanged(low.of_block[block], high.of_block[block], side);
    }
    return sums;
  }

  CUTE_DEVICE static void add_shares(Sums& sums, uint4 const* squares, float2 const (&scale)[2]) {
    CUTE_UNROLL
    for (int half = 0; half < 2; ++half) {
      uint4 const packed = __ldcg(squares + half * 32);
      add_shares(sums.of_block[0], packed.x, scale[half]);
      add_shares(sums.of_block[1], packed.y, scale[half]);
      add_shares(sums.of_block[2], packed.z, scale[half]);
      add_shares(sums.of_block[3], packed.w, scale[half]);
    }
  }

  CUTE_DEVICE static void add_shares(float& sum, uint32_t packed, float2 scale) {
    sum = fmaf(low_square(packed), scale.x, fmaf(high_square(packed), scale.y, sum));
  }
};

}  // namespace sampleattn::sm90::adaptive
