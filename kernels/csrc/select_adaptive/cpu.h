// select_adaptive's rule: the squared shares that a query block's rows give the keys of a block, summed.
#pragma once

#include <algorithm>
#include <cstdint>

#include "select_adaptive/arguments.h"
#include "shared/cpu/head_groups.h"
#include "shared/cpu/isa.h"
#include "shared/cpu/landmark_selection.h"
#include "shared/cpu/visible_blocks.h"
#include "shared/cpu/work.h"

namespace sampleattn::cpu {

class SquaredShares {
 public:
  using Arguments = LandmarkArguments<SelectAdaptiveOptions>;

  // All representatives, and what they add to scores.
  struct Packed : PackedMembers {
    Packed(const Arguments& args, const Isa& isa, int64_t pairs)
        : PackedMembers(args, isa, 0, pairs), log2_weights(pairs * count * columns),
          half_spreads(pairs * count * columns) {}

    int64_t parts() const { return count; }

    // A member, and its terms in units of log2, for queries that are scaled by scale * log2(e).
    void pack_part(const Arguments& args, const Isa& isa, const HeadGroup& group, const VisibleBlocks&, int64_t pair,
                   int64_t m) const {
      pack_member(args, isa, group, pair, m);
      const int64_t from = args.terms(group.batch(pair), group.kv_head(pair), m);
      float* weights = row(log2_weights, pair, m);
      float* spreads = row(half_spreads, pair, m);
      for (int64_t j = 0; j < columns; ++j) {
        const bool scored = j < blocks;
        weights[j] = scored ? args.log_weights[from + j] * kLog2e : -__builtin_inff();
        spreads[j] = scored ? half_spread(args.spreads[from + j]) : 0.0f;
      }
    }

    Buffer log2_weights, half_spreads;
  };

  static double least(const SelectAdaptiveOptions& options) { return options.tau; }

  SquaredShares(const Arguments& args, const Isa& isa, const Packed& packed)
      : isa_(isa), packed_(packed), threshold_(static_cast<float>(args.options.tau * args.options.tau)),
        member_scores_(packed.count * kStripRows * packed.columns), squares_(packed.columns) {}

  float threshold() const { return threshold_; }
  const float* scores() const { return squares_.get(); }

  void begin() { std::fill_n(squares_.get(), packed_.columns, 0.0f); }

  void add(const StripRows& strip, const ExactSums& exact, int64_t pair, int64_t, int64_t own) {
    isa_.add_squared_shares(strip, packed_.member(pair, 0), packed_.count, packed_.columns, own,
                            packed_.row(packed_.log2_weights, pair, 0), packed_.row(packed_.half_spreads, pair, 0),
                            exact, member_scores_.get(), squares_.get());
  }

 private:
  const Isa& isa_;
  const Packed& packed_;
  float threshold_;
  Buffer member_scores_, squares_;
};

}  // namespace sampleattn::cpu
