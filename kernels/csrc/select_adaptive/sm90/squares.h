// Sums of squared exponentials of rows in key blocks, as they wait in device memory for the rows' totals.
#pragma once

#include "select_adaptive/sm90/config.h"

namespace sampleattn::sm90::adaptive {

constexpr int kQuadStride = 16 * 32;  // words, from one quad's to the next one's

// Those of a warp's 16 rows in a quad of blocks: a word a lane, of bfloat16, for its row and the one eight further down.
// Laid out by thread block, item (of two), quad and warp. 32 bits count them: args.squares holds less than 2^32 words.
CUTE_DEVICE uint32_t* squares_of(Arguments const& args, int slot, int quad, int tile, int warp) {
  uint32_t const place = ((uint32_t(blockIdx.x) * 2 + slot) * args.quad_count + quad) * 16 + tile * 8 + warp;
  return args.squares + place * 32;
}

CUTE_DEVICE uint32_t pack_squares(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
CUTE_DEVICE float low_square(uint32_t packed) { return __uint_as_float(packed << 16); }
CUTE_DEVICE float high_square(uint32_t packed) { return __uint_as_float(packed & 0xffff0000u); }

}  // namespace sampleattn::sm90::adaptive
