// Keys that stand for a key block: its landmarks, and the mean of the others.
#pragma once

#include "shared/cuda/error.h"
#include "shared/cuda/types.h"

namespace sampleattn::adaptive {

struct RepresentativeArguments {
  const void* key;  // [B, Hkv, Sk, D]
  Strides key_strides;
  const int32_t* key_segment;  // [B|1, Sk] or null: every key may be seen; else those with 0
  int64_t key_segment_stride;
  const int32_t* first_blocks;  // [B|1] beside key_segment: the first block with a key that may be seen
  int64_t first_block_stride;

  void* representatives;  // [B, Hkv, 1 + landmarks, n, D] contiguous
  float* log_weights;     // [B, Hkv, 1 + landmarks, n] contiguous, as is spreads
  float* spreads;

  int batch, kv_heads, kv_len, head_dim, landmarks;
  DataType dtype;
};

// Blocks of 128 keys, 7 or 15 landmarks, head dims as SelectionHeadDims has them. Launches one kernel.
Error represent_blocks(RepresentativeArguments const& args, cudaStream_t stream);

}  // namespace sampleattn::adaptive
