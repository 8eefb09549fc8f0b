// Which query rows are a prompt's own: where it ends, what a query block holds of it, what is sampled.
//
// A prompt may be padded on the right: its last rows, and the tails that are sampled, count from its end. As
// kernels/shared/rows.py.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "shared/cpu/types.h"
#include "shared/visibility.h"

namespace sampleattn::cpu {

// The row behind a batch entry's last one whose own key is not padding; 0 if all rows are.
inline int64_t row_end(const Segments& key_segment, int64_t b, int64_t q_len, int64_t k_len, int64_t q_offset) {
  const int32_t* ids = key_segment.row(b);
  if (!ids) return q_len;
  int64_t end = q_len;
  while (end > 0 && is_padding(ids, end - 1 + q_offset, k_len)) --end;
  return end;
}

inline std::vector<int64_t> row_ends(const Segments& key_segment, int64_t batch, int64_t q_len, int64_t k_len,
                                     int64_t q_offset) {
  std::vector<int64_t> ends;
  for (int64_t b = 0; b < batch; ++b) ends.push_back(row_end(key_segment, b, q_len, k_len, q_offset));
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

// The last sample_rows rows of each of chunk_n equal chunks of the rows before the end, ascending.
inline std::vector<int64_t> sampled_rows(int64_t end, int64_t chunk_n, int64_t sample_rows) {
  std::vector<int64_t> rows;
  for (int64_t g = 0; g < chunk_n; ++g) {
    const int64_t begin = g * end / chunk_n, stop = (g + 1) * end / chunk_n;
    for (int64_t row = std::max(begin, stop - sample_rows); row < stop; ++row) rows.push_back(row);
  }
  return rows;
}

// How many rows of a query block select_budget samples: fewer for long prompts. As kernels/select_budget/op.py.
inline int64_t rows_of_a_block(int64_t rows, int64_t k_len, int64_t block_q) {
  const int64_t least = std::min<int64_t>(4, rows);
  for (int64_t keys = 16384; rows > least && k_len > keys; keys *= 2) rows /= 2;
  return std::min(rows, block_q);
}

// Every so many rows from one that moves from block to block; past a prompt's end it is the last row, once more.
inline void sample_block(int64_t block, int64_t block_q, int64_t q_len, std::vector<int64_t>& rows) {
  const int64_t step = block_q / static_cast<int64_t>(rows.size());
  const int64_t first = block * block_q, last = std::min(first + block_q, q_len) - 1;
  for (size_t i = 0; i < rows.size(); ++i) {
    rows[i] = std::min(first + (5 * block + 3) % step + static_cast<int64_t>(i) * step, last);
  }
}

}  // namespace sampleattn::cpu
