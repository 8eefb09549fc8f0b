// How much of the attention of sampled rows lies in kept blocks.
#pragma once

#include <algorithm>
#include <cstdint>

#include "sample_scores/sampled_shares.h"
#include "shared/cpu/bits.h"

namespace sampleattn::cpu {

// mass: [B, Hq], the smallest share of a sampled row's softmax that lies in kept blocks.
template <class ParallelFor>
void attention_mass(const SamplingArguments& args, const BlockMask& block_mask, const Isa& isa,
                    const ParallelFor& parallel_for, int64_t threads, float* mass) {
  const Sizes& sizes = args.sizes;
  const int64_t n_blocks = sizes.key_blocks();
  std::fill_n(mass, sizes.batch * sizes.q_heads, 1.0f);
  detail::for_each_sampled_row(
      args, isa, parallel_for, threads, [&](int64_t b, int64_t h, int64_t row, const float* shares) {
        if (!shares) return;
        double kept = 0.0;
        for_each_set_bit(block_mask.row(b, h, row / sizes.block_q), mask_words(n_blocks), [&](int64_t j) {
          if (j < n_blocks) kept += shares[j];
        });
        float& smallest = mass[b * sizes.q_heads + h];
        smallest = std::min(smallest, static_cast<float>(kept));
      });
}

}  // namespace sampleattn::cpu
