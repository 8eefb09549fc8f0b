// Score-based filtering of columns and slashes, and the index that they give (arXiv 2406.15486v3, section 3).
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "select_blocks/arguments.h"
#include "shared/cpu/bits.h"
#include "shared/cpu/rows.h"
#include "shared/cpu/types.h"
#include "shared/cpu/visible_blocks.h"
#include "shared/cpu/work.h"

namespace sampleattn::cpu {

struct SelectBlocksArguments {
  const float* column_scores;  // [B, Hq, n_key_blocks] contiguous, as are slash_scores
  const float* slash_scores;
  Segments key_segment;
  int64_t batch, heads;
  SelectBlocksOptions options;
};

namespace detail {

// Indices of the fewest scores, largest first (ties: lower index first), whose sum reaches alpha of the total.
inline std::vector<int64_t> fewest_reaching(const float* scores, int64_t n, double alpha) {
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), int64_t{0});
  if (alpha >= 1.0) return order;
  double total = 0.0;
  for (int64_t i = 0; i < n; ++i) total += scores[i];
  if (!(alpha * total > 0.0)) return {};  // nothing to reach; also what scores that are not numbers give
  std::stable_sort(order.begin(), order.end(), [&](int64_t x, int64_t y) { return scores[x] > scores[y]; });
  double before = 0.0;
  int64_t kept = 0;
  for (; kept < n && before < alpha * total; ++kept) before += scores[order[kept]];
  order.resize(kept);
  return order;
}

}  // namespace detail

// block_mask: [B, Hq, n_query_blocks, n_words] contiguous.
template <class ParallelFor>
void select_blocks(const SelectBlocksArguments& args, const ParallelFor& parallel_for, int64_t threads,
                   uint32_t* block_mask) {
  const SelectBlocksOptions& options = args.options;
  const int64_t n_key_blocks = ceil_div(options.kv_len, options.block_k), n_words = mask_words(n_key_blocks);
  const int64_t n_query_blocks = ceil_div(options.q_len, options.block_q);
  const std::vector<int64_t> ends =
      row_ends(args.key_segment, args.batch, options.q_len, options.kv_len, RowPositions(options.q_offset));
  const bool everything = options.alpha_c >= 1.0 || options.alpha_s >= 1.0;
  for_each_item(parallel_for, threads, args.batch * args.heads, [&] {
    return [&](int64_t item) {
      const VisibleBlocks visible(args.key_segment, item / args.heads, options.kv_len, options.block_k);
      std::vector<uint32_t> columns(n_words, 0);
      const float* column_scores = args.column_scores + item * n_key_blocks;
      const float* slash_scores = args.slash_scores + item * n_key_blocks;
      const std::vector<int64_t> slashes = detail::fewest_reaching(slash_scores, n_key_blocks, options.alpha_s);
      for (int64_t j : detail::fewest_reaching(column_scores, n_key_blocks, options.alpha_c))
        set_bit(columns.data(), j);
      if (everything) set_prefix(columns.data(), n_key_blocks);
      if (options.keep_sink && visible.first >= 0) set_bit(columns.data(), visible.first);
      std::vector<uint32_t> causal(n_words);
      for (int64_t i = 0; i < n_query_blocks; ++i) {
        uint32_t* row = block_mask + (item * n_query_blocks + i) * n_words;
        const RowBlock rows(i, options.block_q, options.q_len, ends[item / args.heads], options.last_rows);
        // The rows of a query block lie in the blocks low .. high of block_k positions.
        const int64_t low = floor_div(rows.first + options.q_offset, options.block_k);
        const int64_t high = floor_div(rows.stop - 1 + options.q_offset, options.block_k);
        std::copy(columns.begin(), columns.end(), row);
        if (rows.holds_last) set_prefix(row, n_key_blocks);
        for (int64_t own = low; own <= high; ++own) {
          for (int64_t s : slashes) {
            if (own - s >= 0 && own - s < n_key_blocks) set_bit(row, own - s);
          }
        }
        for (int64_t j = std::max<int64_t>(low - options.window_slashes + 1, 0); j <= std::min(high, n_key_blocks - 1);
             ++j) {
          set_bit(row, j);
        }
        std::fill(causal.begin(), causal.end(), 0);
        set_prefix(causal.data(), std::clamp<int64_t>(high + 1, 0, n_key_blocks));
        for (int64_t w = 0; w < n_words; ++w) row[w] &= causal[w] & visible.words[w];
      }
    };
  });
}

}  // namespace sampleattn::cpu
