// Which key blocks hold a key that may be seen.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "shared/cpu/bits.h"
#include "shared/cpu/types.h"
#include "shared/visibility.h"

namespace sampleattn::cpu {

// Those of one batch entry, and the first of them.
struct VisibleBlocks {
  VisibleBlocks(const Segments& key_segment, int64_t b, int64_t kv_len, int64_t block_k)
      : words(mask_words(ceil_div(kv_len, block_k)), 0) {
    const int32_t* ids = key_segment.row(b);
    for (int64_t j = 0; j * block_k < kv_len; ++j) {
      if (ids && !any_visible_key(ids, j * block_k, std::min((j + 1) * block_k, kv_len), 1)) continue;
      if (first < 0) first = j;
      set_bit(words.data(), j);
    }
  }

  std::vector<uint32_t> words;
  int64_t first = -1;  // -1: there is none
};

// Those of every batch entry.
inline std::vector<VisibleBlocks> visible_blocks(const Segments& key_segment, const Sizes& sizes) {
  std::vector<VisibleBlocks> visible;
  for (int64_t b = 0; b < sizes.batch; ++b) visible.emplace_back(key_segment, b, sizes.kv_len, sizes.block_k);
  return visible;
}

}  // namespace sampleattn::cpu
