// What sampled rows get from the key blocks that are left out (select_budget_rest).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "shared/cpu/bits.h"
#include "shared/cpu/head_groups.h"
#include "shared/cpu/isa.h"
#include "shared/cpu/types.h"
#include "shared/cpu/work.h"

namespace sampleattn::cpu {

struct BudgetRest {
  View value;
  BlockMask given;      // blocks that are kept, too
  float* rest_value;    // [B, Hq, n_query_blocks, Dv] contiguous
  float *share, *level;  // [B, Hq, n_query_blocks] contiguous
};

namespace detail {

// Mean values of the key blocks of a group's pairs; 0 for what is not finite, and for blocks without valid keys.
class MeanValues {
 public:
  MeanValues(const Sizes& sizes, int64_t pairs)
      : sizes_(sizes), blocks_(sizes.key_blocks()), means_(pairs * blocks_ * sizes.value_head_dim) {}

  const float* mean(int64_t pair, int64_t block) const {
    return means_.get() + (pair * blocks_ + block) * sizes_.value_head_dim;
  }

  // rows: scratch of one thread, block_k * value_head_dim.
  void fill(const Isa& isa, const HeadGroup& group, const View& value, const Segments& key_segment, int64_t pair,
            int64_t block, float* rows) const {
    const int64_t b = group.batch(pair), dim = sizes_.value_head_dim, first = block * sizes_.block_k;
    const int64_t end = std::min(first + sizes_.block_k, sizes_.kv_len);
    const int32_t* ids = key_segment.row(b);
    int64_t keys[kMaxBlock], n = 0;
    for (int64_t k = first; k < end; ++k) {
      if (!ids || ids[k] == 0) keys[n++] = k;
    }
    isa.pack_query(rows, value, b, group.kv_head(pair), keys, n, n, dim, 1.0f);
    float* to = means_.get() + (pair * blocks_ + block) * dim;
    std::fill_n(to, dim, 0.0f);
    for (int64_t r = 0; r < n; ++r) {
      for (int64_t d = 0; d < dim; ++d) to[d] += rows[r * dim + d];
    }
    const float count = static_cast<float>(std::max<int64_t>(n, 1));
    for (int64_t d = 0; d < dim; ++d) to[d] = std::isfinite(to[d]) ? to[d] / count : 0.0f;
  }

 private:
  static constexpr int64_t kMaxBlock = 128;

  const Sizes& sizes_;
  int64_t blocks_;
  Buffer means_;
};

}  // namespace detail
}  // namespace sampleattn::cpu
