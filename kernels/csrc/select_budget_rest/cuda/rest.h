// What select_budget_rest has beside select_budget: blocks that are kept, too, and what all others give on average.
#pragma once

#include "select_budget/cuda/arguments.h"
#include "shared/cuda/error.h"

namespace sampleattn::budget {

constexpr int kRestVector = 8;  // columns of a mean value that a thread holds, and elements of its loads

struct Rest {
  const uint32_t* block_mask;  // [B|1, Hq|1, q_blocks, mask_words] contiguous
  int64_t mask_batch_stride, mask_head_stride;

  const void* value;  // [B, Hkv, Sk, Dv]
  Strides value_strides;
  int value_head_dim;  // a multiple of kRestVector, at most 256

  void* mean_value;  // workspace, [B, Hkv, n, Dv] of the values' type

  float* rest_value;  // [B, Hq, q_blocks, Dv], contiguous like the others
  float* rest_share;  // [B, Hq, q_blocks]
  float* rest_level;  // likewise
};

// Fills mean_value with the mean values of key blocks, of keys that may be seen: 0 where there is none, and where a
// mean is not finite.
Error average_values(Arguments const& args, Rest const& rest, cudaStream_t stream);

}  // namespace sampleattn::budget
