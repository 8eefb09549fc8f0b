// Selection by landmarks: every query row against the representatives of the key blocks before its own.
//
// A row's shares refer to a total that is exact in the query block's own key blocks and estimated elsewhere. All rows of
// a query block see all keys of the blocks before its own, so only its own blocks are masked.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "select_adaptive/arguments.h"
#include "shared/cpu/bits.h"
#include "shared/cpu/head_groups.h"
#include "shared/cpu/isa.h"
#include "shared/cpu/rows.h"
#include "shared/cpu/strip.h"
#include "shared/cpu/strip_sums.h"
#include "shared/cpu/types.h"
#include "shared/cpu/visible_blocks.h"
#include "shared/cpu/work.h"

namespace sampleattn::cpu {

struct AdaptiveArguments {
  Sizes sizes;
  View query, key;
  View representatives;  // [B, Hkv, members * n_key_blocks, D]
  const float* log_weights;  // [B, Hkv, members, n_key_blocks] contiguous, as are spreads
  const float* spreads;
  int64_t members;
  Segments key_segment;
  SelectAdaptiveOptions options;
  Sinks sinks;
};

namespace detail {

// Packed keys and representatives of a group's pairs, and what the latter add to scores.
struct PackedRepresentatives : PackedKeys {
  PackedRepresentatives(const Sizes& sizes, const Isa& isa, int64_t members, int64_t pairs)
      : PackedKeys(sizes, pairs), columns(round_up(blocks, isa.lanes)), members(members),
        member_floats(sizes.head_dim * columns), representatives(pairs * members * member_floats),
        log2_weights(pairs * members * columns), half_spreads(pairs * members * columns) {}

  float* member(int64_t pair, int64_t m) const { return representatives.get() + (pair * members + m) * member_floats; }
  float* log2_weight(int64_t pair, int64_t m) const { return log2_weights.get() + (pair * members + m) * columns; }
  float* half_spread(int64_t pair, int64_t m) const { return half_spreads.get() + (pair * members + m) * columns; }

  int64_t columns, members, member_floats;
  Buffer representatives, log2_weights, half_spreads;
};

// The terms of one member in units of log2, for queries that are scaled by scale * log2(e).
inline void pack_terms(const AdaptiveArguments& args, const PackedRepresentatives& packed, int64_t pair, int64_t b,
                       int64_t h, int64_t m) {
  const int64_t from = ((b * args.sizes.kv_heads + h) * args.members + m) * packed.blocks;
  float* weights = packed.log2_weight(pair, m);
  float* spreads = packed.half_spread(pair, m);
  for (int64_t j = 0; j < packed.columns; ++j) {
    const bool scored = j < packed.blocks;
    weights[j] = scored ? args.log_weights[from + j] * kLog2e : -__builtin_inff();
    spreads[j] = scored ? args.spreads[from + j] * 0.5f / kLog2e : 0.0f;
  }
}

inline RowPositions positions_of(const AdaptiveArguments& args) {
  return RowPositions(args.options.q_offset, args.options.q_stride, args.sizes.block_q);
}

class AdaptiveWorker {
 public:
  AdaptiveWorker(const AdaptiveArguments& args, const Isa& isa, const KeySegments& segments, int64_t columns)
      : args_(args), isa_(isa), sizes_(args.sizes), position_(positions_of(args)), columns_(columns),
        sums_(sizes_, isa, segments), query_(round_up(sizes_.block_q, kStripRows) * sizes_.head_dim),
        member_scores_(args.members * kStripRows * columns), squares_(columns) {}

  // rows_end: where the batch entry's rows end.
  void run(const PackedRepresentatives& packed, const VisibleBlocks& visible, int64_t rows_end, int64_t pair, int64_t b,
           int64_t h, int64_t query_block, uint32_t* words) {
    const int64_t n_blocks = packed.blocks, n_words = mask_words(n_blocks);
    const RowBlock own_rows(query_block, sizes_.block_q, sizes_.q_len, rows_end, args_.options.last_rows);
    const int64_t first_row = own_rows.first, rows = own_rows.stop - first_row;
    const int64_t low = floor_div(position_(first_row), sizes_.block_k);
    const int64_t high = floor_div(position_(first_row + rows - 1), sizes_.block_k);
    const int64_t end =
        std::clamp<int64_t>(low - args_.options.window_slashes + 1, 0, n_blocks);  // of the blocks before the window
    const int64_t own = std::clamp<int64_t>(low, 0, n_blocks);  // the first block that is scored exactly
    const int64_t stop = std::clamp<int64_t>(high + 1, 0, n_blocks);  // of the causal ones
    std::fill_n(words, n_words, 0);
    if (args_.options.tau <= 0.0 || own_rows.holds_last) {
      set_prefix(words, stop);
    } else {
      for (int64_t j = end; j < stop; ++j) set_bit(words, j);
      if (args_.options.keep_sink && visible.first >= 0 && visible.first < stop) set_bit(words, visible.first);
      if (end > 0) {
        score(packed, pair, b, h, first_row, rows, own, stop);
        const float threshold = static_cast<float>(args_.options.tau * args_.options.tau);
        for (int64_t j = 0; j < end; ++j) {
          if (squares_.get()[j] >= threshold) set_bit(words, j);
        }
      }
    }
    for (int64_t w = 0; w < n_words; ++w) words[w] &= visible.words[w];
  }

 private:
  // Fills squares_[0, own): the squared shares that the rows give each block, summed.
  void score(const PackedRepresentatives& packed, int64_t pair, int64_t b, int64_t h, int64_t first_row, int64_t rows,
             int64_t own, int64_t stop) {
    row_index_.resize(rows);
    std::iota(row_index_.begin(), row_index_.end(), first_row);
    isa_.pack_query(query_.get(), args_.query, b, h, row_index_.data(), rows, round_up(rows, isa_.row_multiple),
                    sizes_.head_dim, static_cast<float>(args_.options.scale) * kLog2e);
    const int64_t n_exact = std::max<int64_t>(stop - own, 0);
    maximum_.resize(kStripRows * n_exact);
    sum_.resize(kStripRows * n_exact);
    std::fill_n(squares_.get(), columns_, 0.0f);
    for (int64_t at = 0; at < rows; at += kStripRows) {
      strip_.set(
          std::min<int64_t>(kStripRows, rows - at), isa_.row_multiple, sizes_.kv_len, true, 0,
          [&](int64_t r) { return position_(first_row + at + r); }, [](int64_t) { return 0; });
      const float* query = query_.get() + at * sizes_.head_dim;
      for (int64_t e = 0; e < n_exact; ++e) {
        sums_.run(strip_, query, packed.key(pair, own + e), b, own + e, maximum_.data() + e, sum_.data() + e, nullptr,
                  n_exact);
      }
      isa_.add_squared_shares(static_cast<int>(strip_.n_rows), strip_.padded_rows, query, sizes_.head_dim,
                              packed.member(pair, 0), args_.members, columns_, own, packed.log2_weight(pair, 0),
                              packed.half_spread(pair, 0), maximum_.data(), sum_.data(), n_exact,
                              args_.sinks.of_head(h) * kLog2e, member_scores_.get(), squares_.get());
    }
  }

  const AdaptiveArguments& args_;
  const Isa& isa_;
  const Sizes& sizes_;
  RowPositions position_;
  int64_t columns_;
  StripSums sums_;
  Buffer query_, member_scores_, squares_;
  std::vector<float> maximum_, sum_;  // of the exact blocks, [kStripRows, n_exact]
  std::vector<int64_t> row_index_;
  Strip strip_;
};

}  // namespace detail

// block_mask: [B, Hq, n_query_blocks, n_words] contiguous.
template <class ParallelFor>
void select_adaptive(const AdaptiveArguments& args, const Isa& isa, const ParallelFor& parallel_for, int64_t threads,
                     uint32_t* block_mask) {
  using namespace detail;
  const Sizes& sizes = args.sizes;
  const int64_t query_blocks = sizes.query_blocks(), blocks = sizes.key_blocks(), words = mask_words(blocks);
  if (sizes.batch * sizes.q_heads * query_blocks * blocks == 0) return;
  const KeySegments segments(args.key_segment, sizes, args.key_segment.data != nullptr);
  const std::vector<VisibleBlocks> visible = visible_blocks(args.key_segment, sizes);
  const std::vector<int64_t> ends =
      row_ends(args.key_segment, sizes.batch, sizes.q_len, sizes.kv_len, positions_of(args));
  const int64_t pair_floats = sizes.head_dim * (blocks * sizes.block_k + args.members * round_up(blocks, isa.lanes));
  const int64_t pairs = pairs_of_a_group(sizes, pair_floats, sizes.group() * query_blocks, threads);
  const PackedRepresentatives packed(sizes, isa, args.members, pairs);
  for_each_head_group(sizes, pairs, [&](const HeadGroup& group) {
    for_each_item(parallel_for, threads, group.count * (blocks + args.members), [&] {
      return [&](int64_t item) {
        const int64_t pair = item % group.count, part = item / group.count;
        if (part < blocks) {
          packed.pack(isa, group, args.key, segments, pair, part);
        } else {
          const int64_t b = group.batch(pair), h = group.kv_head(pair), m = part - blocks;
          isa.pack_keys(packed.member(pair, m), args.representatives, b, h, m * blocks, blocks, packed.columns,
                        sizes.head_dim, nullptr);
          pack_terms(args, packed, pair, b, h, m);
        }
      };
    });
    for_each_query_block(parallel_for, threads, group, sizes.group(), [&] {
      return [&, worker = AdaptiveWorker(args, isa, segments, packed.columns)](int64_t pair, int64_t head,
                                                                               int64_t query_block) mutable {
        const int64_t b = group.batch(pair), h = group.kv_head(pair) * sizes.group() + head;
        worker.run(packed, visible[b], ends[b], pair, b, h, query_block,
                   block_mask + ((b * sizes.q_heads + h) * query_blocks + query_block) * words);
      };
    });
  });
}

}  // namespace sampleattn::cpu
