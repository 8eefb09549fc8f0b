// Which key blocks of kBlock keys hold one that may be seen, the first of them, and where prompts end.
#pragma once

#include "shared/arithmetic.h"
#include "shared/cuda/error.h"
#include "shared/cuda/types.h"

namespace sampleattn {

struct VisibleBlocks {
  const int32_t* key_segment;  // [B|1, Sk], not null; see shared/visibility.h
  int64_t key_segment_stride;
  int batch, q_len, kv_len, q_offset, q_gap;
  bool keep_sink;

  int32_t* sinks;     // [B|1]: the first block with a key that may be seen; n if none is, or if sinks are not kept
  int32_t* row_ends;  // [B|1]: how many query rows come before the prompt's end; null: not asked for
  uint8_t* visible;   // [B|1, n]: the block has such a key

  constexpr int n() const { return ceil_div(kv_len, kBlock); }
  constexpr int entries() const { return key_segment_stride ? batch : 1; }
};

// Fills sinks, visible and, if it is asked for, row_ends.
Error find_visible_blocks(VisibleBlocks const& args, cudaStream_t stream);

}  // namespace sampleattn
