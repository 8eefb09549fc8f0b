// What select_budget_rest has beside select_budget: blocks that are kept, too, and what all others give on average.
#pragma once

#include "select_budget/cuda/arguments.h"
#include "shared/cuda/error.h"

namespace sampleattn::budget {

constexpr int kRestVector = 8;    // elements of a load of values or mean values
constexpr int kRestColumns = 32;  // the head dim of values is a multiple of it
constexpr int kMostRestColumns = 256;
// Query blocks and key blocks of a tile of shares.
constexpr int kRestRows = 16, kRestKeys = 32;

struct Rest {
  const uint32_t* block_mask;  // [B|1, Hq|1, q_blocks, mask_words] contiguous
  int64_t mask_batch_stride, mask_head_stride;

  const void* value;  // [B, Hkv, Sk, Dv]
  Strides value_strides;
  int value_head_dim;

  // Workspace on the device.
  void* mean_value;  // [B, Hkv, n, Dv] of the values' type
  float* shares;  // of left-out key blocks: [B * Hq, query blocks of a batch, rest_pitch], each row up to rest_stop

  float* rest_value;  // [B, Hq, q_blocks, Dv], contiguous like the others
  float* rest_share;  // [B, Hq, q_blocks]
  float* rest_level;  // likewise
};

SAMPLEATTN_DEVICE int rest_pitch(Arguments const& args) { return round_up(args.n(), kRestKeys); }
// Behind the last key block that any query block of a batch's tile may see, in whole tiles.
SAMPLEATTN_DEVICE int rest_stop(Arguments const& args, int tile) {
  return round_up(args.stop_of(args.first_query_block + (tile + 1) * kRestRows), kRestKeys);
}

// Fills mean_value with the mean values of key blocks, of keys that may be seen: 0 where there is none, and where a
// mean is not finite.
Error average_values(Arguments const& args, Rest const& rest, cudaStream_t stream);

// Fills rest_value of a batch of query blocks, of the shares that write_bits left.
Error sum_values(Arguments const& args, Rest const& rest, cudaStream_t stream);

}  // namespace sampleattn::budget
