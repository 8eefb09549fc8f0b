// The runs of keys that a tile of work keeps, one after another: what a loop over the set bits of the index finds.
#pragma once

#include "sampleattn/cuda/key_tile.h"

#ifndef __CUDA_ARCH__
#include <bit>
#endif

namespace sampleattn {

SAMPLEATTN_DEVICE int lowest_bit(uint32_t bits) {
#ifdef __CUDA_ARCH__
  return __ffs(bits) - 1;
#else
  return std::countr_zero(bits);
#endif
}

struct RunWalker {
  uint32_t const* row;
  BlockRange range;
  int block_k;
  int word;
  uint32_t bits = 0;
  int pending = kNoRun;  // the second half of a block of two runs

  SAMPLEATTN_DEVICE RunWalker(Arguments const& args, Tile const& tile)
      : row(mask_row(args, tile)), range(allowed_blocks(args, tile)), block_k(args.block_k),
        word(range.first / 32 - 1) {}

  // First key of the next run of kKeyRun keys, or kNoRun after the last.
  SAMPLEATTN_DEVICE int next() {
    if (pending != kNoRun) {
      int const run = pending;
      pending = kNoRun;
      return run;
    }
    while (bits == 0) {
      if (++word * 32 > range.last) return kNoRun;
      bits = allowed_word(row, range, word);
    }
    int const run = (word * 32 + lowest_bit(bits)) * block_k;
    bits &= bits - 1;
    if (block_k > kKeyRun) pending = run + kKeyRun;
    return run;
  }
};

}  // namespace sampleattn
