// What one block-sparse attention call consists of: raw pointers, sizes and strides (in elements).
#pragma once

#include "shared/arithmetic.h"
#include "shared/cuda/types.h"

namespace sampleattn {

// Query rows of one tile of work. The index's block_q is a multiple of it.
constexpr int kTileRows = 128;
// Keys are addressed in runs of this many rows; the index's block_k is one or two of them.
constexpr int kKeyRun = 64;

// Smallest and largest segment id of a run of rows.
struct SegmentRange {
  int32_t lowest, highest;
};

// One entry of the work list: a tile of query rows of one head, and how many key blocks it keeps; tiles of means count
// as so many blocks as they hold rows.
struct WorkItem {
  int32_t tile, blocks;
};

struct Arguments {
  const void* query;  // [B, Hq, Sq, D]
  const void* key;    // [B, Hkv, Sk, D]
  const void* value;  // [B, Hkv, Sk, Dv]
  Strides query_strides, key_strides, value_strides;

  void* out;   // [B, Sq, Hq, Dv] contiguous
  float* lse;  // [B, Hq, Sq] contiguous, natural logarithm

  const uint32_t* block_mask;  // [B|1, Hq|1, q_blocks, mask_words]
  int64_t mask_batch_stride, mask_head_stride;
  int mask_words, block_q, block_k;

  const int32_t* query_segment;  // [B|1, Sq] or null: every query is in segment 0
  const int32_t* key_segment;    // [B|1, Sk] or null: every key is in segment 0; negative: no row sees the key
  int64_t query_segment_stride, key_segment_stride;

  const float* sinks;  // [Hq|1] or null: of a head, a logit beside its scores that has no value
  int64_t sink_stride;

  int batch, q_heads, kv_heads, q_len, kv_len, head_dim, value_head_dim;
  int q_offset, q_gap, window;  // q_gap: from a query block's end to the next one's beginning
  bool causal;
  float scale;
  DataType dtype;

  // Of every key block, for kernels that take dropped blocks by their means: see cuda/means.h. Else null.
  void* mean_key;     // [B, Hkv, key_blocks, D] contiguous
  void* mean_value;   // [B, Hkv, key_blocks, Dv] contiguous
  float* mean_terms;  // [B, Hkv, key_blocks, 2]

  // Of every query block, what its left-out keys give (see block_rest_attention/op.py), all contiguous. Else null.
  const float* rest_value;  // [B, Hq, q_blocks, Dv]
  const float* rest_share;  // [B, Hq, q_blocks]
  const float* rest_level;  // likewise
  float rest_part;

  // Workspace on the device.
  WorkItem* work;             // [tiles], filled by build_work_list
  int32_t* tile_blocks;       // [tiles], scratch
  int32_t* next_work;         // [1], position in the work list
  SegmentRange* query_range;  // [B|1, q_tiles] or null when neither segment tensor is given
  SegmentRange* key_range;    // [B|1, key runs] or null when key_segment is null

  // Where a query row stands.
  SAMPLEATTN_DEVICE int position(int row) const { return row + q_offset + row / kTileRows * q_gap; }
  constexpr int q_tiles() const { return (q_len + kTileRows - 1) / kTileRows; }
  constexpr int q_blocks() const { return (q_len + block_q - 1) / block_q; }
  constexpr int key_blocks() const { return (kv_len + block_k - 1) / block_k; }
  constexpr int key_runs() const { return (kv_len + kKeyRun - 1) / kKeyRun; }
  constexpr int tiles() const { return batch * q_heads * q_tiles(); }
};

}  // namespace sampleattn
