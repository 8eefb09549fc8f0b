// select_peaks' rule: the largest share that one of a query block's rows gives to a landmark of a key block.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "select_peaks/arguments.h"
#include "shared/cpu/head_groups.h"
#include "shared/cpu/isa.h"
#include "shared/cpu/landmark_selection.h"
#include "shared/cpu/types.h"
#include "shared/cpu/visible_blocks.h"
#include "shared/cpu/work.h"
#include "shared/landmarks.h"

namespace sampleattn::cpu {

class LargestShares {
 public:
  using Arguments = LandmarkArguments<SelectPeaksOptions>;

  // All landmarks; and what stands for the keys before a row's own blocks in its total: the landmarks of the prompt's
  // first block, then a normal distribution for every kPeakBlocks blocks.
  struct Packed : PackedMembers {
    Packed(const Arguments& args, const Isa& isa, int64_t pairs)
        : PackedMembers(args, isa, 1, pairs), normals(blocks / kPeakBlocks),
          total_columns(round_up(count + normals, isa.lanes)), exist(pairs * count * columns),
          total(pairs * args.sizes.head_dim * total_columns), log2_weights(pairs * total_columns),
          half_spreads(pairs * total_columns), dim_(args.sizes.head_dim) {}

    int64_t parts() const { return count + 1; }

    void pack_part(const Arguments& args, const Isa& isa, const HeadGroup& group, const VisibleBlocks& visible,
                   int64_t pair, int64_t part) const {
      if (part == count) {
        if (visible.first >= 0) pack_total(args, isa, group, visible.first, pair);
        return;
      }
      pack_member(args, isa, group, pair, part);
      const float* weights = args.log_weights + args.terms(group.batch(pair), group.kv_head(pair), first + part);
      float* to = row(exist, pair, part);
      for (int64_t j = 0; j < columns; ++j) to[j] = j < blocks ? existence(weights[j]) : -__builtin_inff();
    }

    // For the rows of a query block whose own blocks begin with `own`.
    StandIns stand_ins(int64_t pair, int64_t own) const {
      const int64_t at = pair * total_columns;
      return {total.get() + at * dim_, total_columns, count + own / kPeakBlocks, log2_weights.get() + at,
              half_spreads.get() + at};
    }

    int64_t normals, total_columns;
    Buffer exist;  // 0, or -inf for a landmark that a block does not have
    Buffer total, log2_weights, half_spreads;

   private:
    static float existence(float log_weight) { return log_weight > -__builtin_inff() ? 0.0f : -__builtin_inff(); }

    void pack_total(const Arguments& args, const Isa& isa, const HeadGroup& group, int64_t first_block,
                    int64_t pair) const {
      const int64_t b = group.batch(pair), h = group.kv_head(pair);
      float* weights = log2_weights.get() + pair * total_columns;
      float* spreads = half_spreads.get() + pair * total_columns;
      std::fill_n(weights, total_columns, -__builtin_inff());
      std::fill_n(spreads, total_columns, 0.0f);
      const Buffer rows((count + normals) * dim_);
      std::vector<int64_t> marks(count);
      for (int64_t m = 0; m < count; ++m) {
        marks[m] = (first + m) * blocks + first_block;
        weights[m] = existence(args.log_weights[args.terms(b, h, first + m) + first_block]);
      }
      isa.pack_query(rows.get(), args.representatives, b, h, marks.data(), count, count, dim_, 1.0f);
      const Buffer means(kPeakBlocks * dim_);
      for (int64_t g = 0; g < normals; ++g) {
        std::array<int64_t, kPeakBlocks> of_blocks;
        std::iota(of_blocks.begin(), of_blocks.end(), g * kPeakBlocks);
        isa.pack_query(means.get(), args.representatives, b, h, of_blocks.data(), kPeakBlocks, kPeakBlocks, dim_, 1.0f);
        const int64_t from = args.terms(b, h, 0) + g * kPeakBlocks;
        add_up(means.get(), args.log_weights + from, args.spreads + from, rows.get() + (count + g) * dim_,
               weights + count + g, spreads + count + g);
      }
      const View view{reinterpret_cast<char*>(rows.get()), Dtype::f32, 0, 0, dim_};
      isa.pack_keys(total.get() + pair * dim_ * total_columns, view, 0, 0, 0, count + normals, total_columns, dim_,
                    nullptr);
    }

    // From kPeakBlocks blocks' keys but the landmarks to one distribution of all of them.
    void add_up(const float* means, const float* of_numbers, const float* of_spreads, float* mean, float* log2_weight,
                float* half) const {
      float numbers[kPeakBlocks], number = 0.0f, spread = 0.0f;
      for (int i = 0; i < kPeakBlocks; ++i) number += numbers[i] = std::exp(of_numbers[i]);
      std::fill_n(mean, dim_, 0.0f);
      if (number <= 0.0f) return;
      for (int i = 0; i < kPeakBlocks; ++i) {
        for (int64_t d = 0; d < dim_; ++d) mean[d] += numbers[i] / number * means[i * dim_ + d];
      }
      for (int i = 0; i < kPeakBlocks; ++i) {
        float apart = 0.0f;
        for (int64_t d = 0; d < dim_; ++d) {
          apart += (means[i * dim_ + d] - mean[d]) * (means[i * dim_ + d] - mean[d]);
        }
        spread += numbers[i] / number * (of_spreads[i] + apart / static_cast<float>(std::max<int64_t>(dim_, 1)));
      }
      *log2_weight = std::log2(number);
      *half = half_spread(spread);
    }

    int64_t dim_;
  };

  static double least(const SelectPeaksOptions& options) { return options.peak; }

  LargestShares(const Arguments& args, const Isa& isa, const Packed& packed)
      : isa_(isa), packed_(packed), threshold_(static_cast<float>(std::log2(args.options.peak))),
        scratch_(kStripRows * std::max(packed.total_columns, isa.panel)), peaks_(packed.columns) {}

  // Logarithms, in units of log2.
  float threshold() const { return threshold_; }
  const float* scores() const { return peaks_.get(); }

  void begin() { std::fill_n(peaks_.get(), packed_.columns, -__builtin_inff()); }

  void add(const StripRows& strip, const ExactSums& exact, int64_t pair, int64_t end, int64_t own) {
    isa_.raise_peaks(strip, packed_.member(pair, 0), packed_.count, packed_.columns, end,
                     packed_.row(packed_.exist, pair, 0), packed_.stand_ins(pair, own), exact, scratch_.get(),
                     peaks_.get());
  }

 private:
  const Isa& isa_;
  const Packed& packed_;
  float threshold_;
  Buffer scratch_, peaks_;
};

}  // namespace sampleattn::cpu
