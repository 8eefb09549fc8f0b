// How much attention sampled rows give each column and each slash of key blocks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "sample_scores/sampled_shares.h"

namespace sampleattn::cpu {

// column_scores and slash_scores: [B, Hq, n_key_blocks] contiguous.
template <class ParallelFor>
void sample_scores(const SamplingArguments& args, const Isa& isa, const ParallelFor& parallel_for, int64_t threads,
                   float* column_scores, float* slash_scores) {
  const Sizes& sizes = args.sizes;
  const int64_t n_blocks = sizes.key_blocks(), heads = sizes.batch * sizes.q_heads;
  std::vector<double> column(heads * n_blocks, 0.0), slash(heads * n_blocks, 0.0);
  detail::for_each_sampled_row(
      args, isa, parallel_for, threads, [&](int64_t b, int64_t h, int64_t row, const float* shares) {
        if (!shares) return;
        const int64_t own = floor_div(row + args.options.q_offset, sizes.block_k);
        double* columns = column.data() + (b * sizes.q_heads + h) * n_blocks;
        double* slashes = slash.data() + (b * sizes.q_heads + h) * n_blocks;
        for (int64_t j = 0; j < n_blocks; ++j) columns[j] += shares[j];
        for (int64_t j = std::max<int64_t>(own - n_blocks + 1, 0); j <= std::min(own, n_blocks - 1); ++j) {
          slashes[own - j] += shares[j];
        }
      });
  // Both kinds of strip are seen by the rows whose own block is at least their index.
  std::vector<std::vector<int64_t>> sees;
  for (const std::vector<int64_t>& rows : sampled_rows(args)) {
    sees.emplace_back(n_blocks, 0);
    for (int64_t row : rows) {
      const int64_t own = floor_div(row + args.options.q_offset, sizes.block_k);
      for (int64_t j = 0; j <= std::min(own, n_blocks - 1); ++j) ++sees.back()[j];
    }
  }
  for (int64_t i = 0; i < heads * n_blocks; ++i) {
    const int64_t entry = sees.size() == 1 ? 0 : i / (sizes.q_heads * n_blocks);
    const double rows = static_cast<double>(std::max<int64_t>(sees[entry][i % n_blocks], 1));
    column_scores[i] = static_cast<float>(column[i] / rows);
    slash_scores[i] = static_cast<float>(slash[i] / rows);
  }
}

}  // namespace sampleattn::cpu
