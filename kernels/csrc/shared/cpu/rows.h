// Which query rows are a prompt's own: where it ends, and what a query block holds of it, as kernels/shared/rows.py has it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "shared/cpu/types.h"
#include "shared/visibility.h"

namespace sampleattn::cpu {

// Where rows stand: query blocks are contiguous runs of block_q rows, and begin `stride` times block_q apart.
struct RowPositions {
  explicit RowPositions(int64_t offset, int64_t stride = 1, int64_t block_q = 1)
      : offset(offset), gap((stride - 1) * block_q), block_q(block_q) {}

  int64_t operator()(int64_t row) const { return row + offset + row / block_q * gap; }

  int64_t offset, gap, block_q;
};

// The row behind a batch entry's last one whose own key is not padding; 0 if all rows are.
inline int64_t row_end(const Segments& key_segment, int64_t b, int64_t q_len, int64_t kv_len,
                       const RowPositions& position) {
  const int32_t* ids = key_segment.row(b);
  if (!ids) return q_len;
  int64_t end = q_len;
  while (end > 0 && is_padding(ids, position(end - 1), kv_len)) --end;
  return end;
}

inline std::vector<int64_t> row_ends(const Segments& key_segment, int64_t batch, int64_t q_len, int64_t kv_len,
                                     const RowPositions& position) {
  std::vector<int64_t> ends;
  for (int64_t b = 0; b < batch; ++b) ends.push_back(row_end(key_segment, b, q_len, kv_len, position));
  return ends;
}

// The rows [first, stop) that a query block is chosen for: of the block in which a prompt ends, those before the end.
struct RowBlock {
  RowBlock(int64_t block, int64_t block_q, int64_t q_len, int64_t end, int64_t last_rows)
      : first(block * block_q), stop(std::min(first + block_q, q_len)) {
    if (first >= end) return;
    stop = std::min(stop, end);
    holds_last = stop > end - last_rows;
  }

  int64_t first, stop;
  bool holds_last = false;  // one of the prompt's last rows
};

}  // namespace sampleattn::cpu
