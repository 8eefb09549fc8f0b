// Selections of key blocks by landmarks: query rows against the representatives of the blocks before their own.
//
// A row's shares refer to a total that is exact in the query block's own key blocks and estimated elsewhere. All rows of
// a query block see all keys of the blocks before its own, so only its own blocks are masked. How blocks are scored is a
// rule's: SquaredShares of select_adaptive, LargestShares of select_peaks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

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

template <class Options>
struct LandmarkArguments {
  Sizes sizes;
  View query, key;
  View representatives;  // [B, Hkv, members * n_key_blocks, D]
  const float* log_weights;  // [B, Hkv, members, n_key_blocks] contiguous, as are spreads
  const float* spreads;
  int64_t members;
  Segments key_segment;
  Options options;
  Sinks sinks;

  RowPositions positions() const { return RowPositions(options.q_offset, options.q_stride, sizes.block_q); }
  // Where a member's log_weights and spreads begin.
  int64_t terms(int64_t b, int64_t kv_head, int64_t m) const {
    return ((b * sizes.kv_heads + kv_head) * members + m) * sizes.key_blocks();
  }
};

// Packed keys of a group's pairs, and their members from the `first` on, each a head_dim x columns matrix.
struct PackedMembers : PackedKeys {
  template <class Options>
  PackedMembers(const LandmarkArguments<Options>& args, const Isa& isa, int64_t first, int64_t pairs)
      : PackedKeys(args.sizes, pairs), columns(round_up(blocks, isa.lanes)), first(first), count(args.members - first),
        floats_(args.sizes.head_dim * columns), members_(pairs * count * floats_) {}

  // i counts from the first.
  float* member(int64_t pair, int64_t i) const { return members_.get() + (pair * count + i) * floats_; }
  // Of an array that has a row of columns for every member.
  float* row(const Buffer& rows, int64_t pair, int64_t i) const { return rows.get() + (pair * count + i) * columns; }

  template <class Options>
  void pack_member(const LandmarkArguments<Options>& args, const Isa& isa, const HeadGroup& group, int64_t pair,
                   int64_t i) const {
    isa.pack_keys(member(pair, i), args.representatives, group.batch(pair), group.kv_head(pair), (first + i) * blocks,
                  blocks, columns, args.sizes.head_dim, nullptr);
  }

  int64_t columns, first, count;

 private:
  int64_t floats_;
  Buffer members_;
};

// Hands a query block's rows to the rule, strip by strip, with what they give the keys of its own blocks.
template <class Rule>
class LandmarkWorker {
 public:
  using Arguments = typename Rule::Arguments;
  using Packed = typename Rule::Packed;

  LandmarkWorker(const Arguments& args, const Isa& isa, const KeySegments& segments, const Packed& packed)
      : args_(args), isa_(isa), sizes_(args.sizes), packed_(packed), position_(args.positions()),
        sums_(sizes_, isa, segments), query_(round_up(sizes_.block_q, kStripRows) * sizes_.head_dim),
        rule_(args, isa, packed) {}

  // rows_end: where the batch entry's rows end.
  void run(const VisibleBlocks& visible, int64_t rows_end, int64_t pair, int64_t b, int64_t h, int64_t query_block,
           uint32_t* words) {
    const int64_t n_blocks = packed_.blocks, n_words = mask_words(n_blocks);
    const RowBlock own_rows(query_block, sizes_.block_q, sizes_.q_len, rows_end, args_.options.last_rows);
    const int64_t first_row = own_rows.first, rows = own_rows.stop - first_row;
    const int64_t low = floor_div(position_(first_row), sizes_.block_k);
    const int64_t high = floor_div(position_(first_row + rows - 1), sizes_.block_k);
    const int64_t end =
        std::clamp<int64_t>(low - args_.options.window_slashes + 1, 0, n_blocks);  // of the blocks before the window
    const int64_t own = std::clamp<int64_t>(low, 0, n_blocks);  // the first block that is scored exactly
    const int64_t stop = std::clamp<int64_t>(high + 1, 0, n_blocks);  // of the causal ones
    std::fill_n(words, n_words, 0);
    if (Rule::least(args_.options) <= 0.0 || own_rows.holds_last) {
      set_prefix(words, stop);
    } else {
      for (int64_t j = end; j < stop; ++j) set_bit(words, j);
      if (args_.options.keep_sink && visible.first >= 0 && visible.first < stop) set_bit(words, visible.first);
      if (visible.first >= 0 && visible.first < end) {
        score(pair, b, h, first_row, rows, end, own, stop);
        const float threshold = rule_.threshold();
        for (int64_t j = 0; j < end; ++j) {
          if (rule_.scores()[j] >= threshold) set_bit(words, j);
        }
      }
    }
    for (int64_t w = 0; w < n_words; ++w) words[w] &= visible.words[w];
  }

 private:
  // Has the rule score the blocks [0, end).
  void score(int64_t pair, int64_t b, int64_t h, int64_t first_row, int64_t rows, int64_t end, int64_t own,
             int64_t stop) {
    row_index_.resize(rows);
    std::iota(row_index_.begin(), row_index_.end(), first_row);
    isa_.pack_query(query_.get(), args_.query, b, h, row_index_.data(), rows, round_up(rows, isa_.row_multiple),
                    sizes_.head_dim, static_cast<float>(args_.options.scale) * kLog2e);
    const int64_t n_exact = std::max<int64_t>(stop - own, 0);
    maximum_.resize(kStripRows * n_exact);
    sum_.resize(kStripRows * n_exact);
    const ExactSums exact{maximum_.data(), sum_.data(), n_exact, args_.sinks.of_head(h) * kLog2e};
    rule_.begin();
    for (int64_t at = 0; at < rows; at += kStripRows) {
      strip_.set(
          std::min<int64_t>(kStripRows, rows - at), isa_.row_multiple, sizes_.kv_len, true, 0,
          [&](int64_t r) { return position_(first_row + at + r); }, [](int64_t) { return 0; });
      const StripRows strip{static_cast<int>(strip_.n_rows), strip_.padded_rows, query_.get() + at * sizes_.head_dim,
                            sizes_.head_dim};
      for (int64_t e = 0; e < n_exact; ++e) {
        sums_.run(strip_, strip.query, packed_.key(pair, own + e), b, own + e, maximum_.data() + e, sum_.data() + e,
                  nullptr, n_exact);
      }
      rule_.add(strip, exact, pair, end, own);
    }
  }

  const Arguments& args_;
  const Isa& isa_;
  const Sizes& sizes_;
  const Packed& packed_;
  RowPositions position_;
  StripSums sums_;
  Buffer query_;
  Rule rule_;
  std::vector<float> maximum_, sum_;  // of the exact blocks, [kStripRows, n_exact]
  std::vector<int64_t> row_index_;
  Strip strip_;
};

// block_mask: [B, Hq, n_query_blocks, n_words] contiguous.
template <class Rule, class ParallelFor>
void select_by_landmarks(const typename Rule::Arguments& args, const Isa& isa, const ParallelFor& parallel_for,
                         int64_t threads, uint32_t* block_mask) {
  const Sizes& sizes = args.sizes;
  const int64_t query_blocks = sizes.query_blocks(), blocks = sizes.key_blocks(), words = mask_words(blocks);
  const int64_t rows = sizes.batch * sizes.q_heads * query_blocks;
  if (blocks == 0) std::fill_n(block_mask, rows * words, 0);
  if (rows * blocks == 0) return;
  const KeySegments segments(args.key_segment, sizes, args.key_segment.data != nullptr);
  const std::vector<VisibleBlocks> visible = visible_blocks(args.key_segment, sizes);
  const std::vector<int64_t> ends =
      row_ends(args.key_segment, sizes.batch, sizes.q_len, sizes.kv_len, args.positions());
  const int64_t pair_floats = sizes.head_dim * (blocks * sizes.block_k + args.members * round_up(blocks, isa.lanes));
  const int64_t pairs = pairs_of_a_group(sizes, pair_floats, sizes.group() * query_blocks, threads);
  const typename Rule::Packed packed(args, isa, pairs);
  for_each_head_group(sizes, pairs, [&](const HeadGroup& group) {
    for_each_item(parallel_for, threads, group.count * (blocks + packed.parts()), [&] {
      return [&](int64_t item) {
        const int64_t pair = item % group.count, part = item / group.count;
        if (part < blocks) {
          packed.pack(isa, group, args.key, segments, pair, part);
        } else {
          packed.pack_part(args, isa, group, visible[group.batch(pair)], pair, part - blocks);
        }
      };
    });
    for_each_query_block(parallel_for, threads, group, sizes.group(), [&] {
      return [&, worker = LandmarkWorker<Rule>(args, isa, segments, packed)](int64_t pair, int64_t head,
                                                                             int64_t query_block) mutable {
        const int64_t b = group.batch(pair), h = group.kv_head(pair) * sizes.group() + head;
        worker.run(visible[b], ends[b], pair, b, h, query_block,
                   block_mask + ((b * sizes.q_heads + h) * query_blocks + query_block) * words);
      };
    });
  });
}

}  // namespace sampleattn::cpu
