// Maxima, sums and sums of squares of a strip's exponentials over one key block, whatever the strip sees of it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "shared/cpu/isa.h"
#include "shared/cpu/strip.h"
#include "shared/cpu/types.h"
#include "shared/cpu/work.h"

namespace sampleattn::cpu {

// A block of one KV head's keys as strips are scored against them; `packed`: [head_dim, block_k].
inline void pack_key_block(const Isa& isa, const Sizes& sizes, const View& key, const KeySegments& segments, int64_t b,
                           int64_t kv_head, int64_t block, float* packed) {
  const int64_t first_key = block * sizes.block_k;
  isa.pack_keys(packed, key, b, kv_head, first_key, std::min(sizes.block_k, sizes.kv_len - first_key), sizes.block_k,
                sizes.head_dim, segments.row(b));
}

class StripSums {
 public:
  StripSums(const Sizes& sizes, const Isa& isa, const KeySegments& segments)
      : sizes_(sizes), isa_(isa), segments_(segments), scores_(kStripRows * sizes.block_k) {}

  // query and keys: packed. Row r's numbers go to maximum[r * row_stride] and so on; squares may be nullptr.
  void run(const Strip& strip, const float* query, const float* keys, int64_t b, int64_t block, float* maximum,
           float* sum, float* squares, int64_t row_stride) {
    const int64_t first_key = block * sizes_.block_k;
    const Visible visible = strip.visible(first_key, sizes_.block_k, segments_, b, block);
    if (visible == Visible::none) {
      for (int64_t r = 0; r < strip.padded_rows; ++r) {
        maximum[r * row_stride] = -__builtin_inff();
        sum[r * row_stride] = 0.0f;
        if (squares) squares[r * row_stride] = 0.0f;
      }
      return;
    }
    BlockMaskedRows masked;
    if (visible == Visible::some) masked = mask_.relative(strip, first_key, sizes_.block_k, segments_.row(b));
    isa_.block_sums(strip.padded_rows, query, sizes_.head_dim, keys, sizes_.block_k,
                    visible == Visible::some ? &masked : nullptr, scores_.get(), maximum, sum, squares, row_stride);
  }

 private:
  const Sizes& sizes_;
  const Isa& isa_;
  const KeySegments& segments_;
  Buffer scores_;
  StripMask mask_;
};

}  // namespace sampleattn::cpu
