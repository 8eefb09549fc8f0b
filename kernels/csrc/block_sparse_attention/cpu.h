// Block-sparse attention on the CPU: keys and values are packed once per KV head, query blocks walk their set bits.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "block_sparse_attention/arguments.h"
#include "shared/cpu/bits.h"
#include "shared/cpu/head_groups.h"
#include "shared/cpu/isa.h"
#include "shared/cpu/rows.h"
#include "shared/cpu/strip.h"
#include "shared/cpu/types.h"
#include "shared/cpu/work.h"

namespace sampleattn::cpu {

// What sampled rows of every query block get from the keys that it leaves out; value nullptr: nothing is known of it.
struct RestArguments {
  const float* value = nullptr;  // [B, Hq, n_query_blocks, Dv] contiguous
  const float *share = nullptr, *level = nullptr;  // [B, Hq, n_query_blocks] contiguous
  float part = 0.0f;
};

struct AttentionArguments {
  Sizes sizes;
  View query, key, value, out;
  float* lse;  // [B, Hq, Sq] contiguous
  BlockMask block_mask;
  Segments query_segment, key_segment;
  Sinks sinks;
  BlockSparseAttentionOptions options;  // a window <= 0: none
  RestArguments rest;
};

namespace detail {

// Packed keys and values of a group's pairs.
struct PackedHeads : PackedKeys {
  PackedHeads(const Sizes& sizes, const Isa& isa, int64_t pairs)
      : PackedKeys(sizes, pairs), value_floats(round_up(sizes.value_head_dim, isa.lanes) * sizes.block_k),
        values(pairs * blocks * value_floats), finite(pairs * blocks) {}

  float* value(int64_t pair, int64_t block) const { return values.get() + (pair * blocks + block) * value_floats; }

  int64_t value_floats;
  Buffer values;
  std::vector<char> finite;  // per block; not bool: written by several threads
};

// Scratch of one thread, and the work on one query block of one head.
class AttentionWorker {
 public:
  AttentionWorker(const AttentionArguments& args, const Isa& isa, const KeySegments& segments)
      : args_(args), isa_(isa), segments_(segments), sizes_(args.sizes),
        position_(args.options.q_offset, args.options.q_stride, sizes_.block_q),
        padded_rows_(round_up(sizes_.block_q, kStripRows)), v_columns_(round_up(sizes_.value_head_dim, isa.lanes)),
        query_(padded_rows_ * sizes_.head_dim), out_(padded_rows_ * v_columns_), maximum_(padded_rows_),
        sum_(padded_rows_), scores_(kStripRows * sizes_.block_k), strips_(padded_rows_ / kStripRows) {}

  void run(const PackedHeads& packed, int64_t pair, int64_t b, int64_t h, int64_t query_block) {
    const int64_t first_row = query_block * sizes_.block_q;
    const int64_t rows = std::min(sizes_.block_q, sizes_.q_len - first_row);
    begin(b, h, first_row, rows);
    const uint32_t* words = args_.block_mask.row(b, h, query_block);
    for_each_set_bit(words, mask_words(sizes_.key_blocks()), [&](int64_t block) {
      if (block < sizes_.key_blocks()) add_block(packed, pair, b, block);
    });
    const float sink = args_.sinks.of_head(h) * kLog2e;
    const LeftOut left_out = this->left_out((b * sizes_.q_heads + h) * sizes_.query_blocks() + query_block);
    for (int64_t s = 0; s * kStripRows < rows; ++s) {
      const int64_t row = first_row + s * kStripRows;
      float* lse = args_.lse + (b * sizes_.q_heads + h) * sizes_.q_len + row;
      isa_.finish(state(s), static_cast<int>(strips_[s].n_rows), sizes_.value_head_dim, v_columns_, sink, left_out,
                  args_.out, b, h, row, lse);
    }
  }

 private:
  RowState state(int64_t s) const {
    const int64_t row = s * kStripRows;
    return {out_.get() + row * v_columns_, maximum_.get() + row, sum_.get() + row};
  }

  // at: of the query block among those of all heads.
  LeftOut left_out(int64_t at) const {
    const RestArguments& rest = args_.rest;
    if (!rest.value || !(rest.share[at] > 0.0f)) return {};  // nor where the share is not a number
    return {rest.value + at * sizes_.value_head_dim, rest.share[at], rest.level[at], rest.part};
  }

  void begin(int64_t b, int64_t h, int64_t first_row, int64_t rows) {
    row_index_.resize(rows);
    std::iota(row_index_.begin(), row_index_.end(), first_row);
    isa_.pack_query(query_.get(), args_.query, b, h, row_index_.data(), rows, round_up(rows, isa_.row_multiple),
                    sizes_.head_dim, static_cast<float>(args_.options.scale) * kLog2e);
    std::fill_n(out_.get(), padded_rows_ * v_columns_, 0.0f);
    std::fill_n(maximum_.get(), padded_rows_, -__builtin_inff());
    std::fill_n(sum_.get(), padded_rows_, 0.0f);
    const int32_t* ids = args_.query_segment.row(b);
    n_strips_ = ceil_div(rows, kStripRows);
    for (int64_t s = 0; s < n_strips_; ++s) {
      const int64_t at = first_row + s * kStripRows;
      strips_[s].set(
          std::min<int64_t>(kStripRows, first_row + rows - at), isa_.row_multiple, sizes_.kv_len, args_.options.causal,
          args_.options.window, [&](int64_t r) { return position_(at + r); },
          [&](int64_t r) { return ids ? ids[at + r] : 0; });
    }
  }

  void add_block(const PackedHeads& packed, int64_t pair, int64_t b, int64_t block) {
    const int64_t first_key = block * sizes_.block_k;
    for (int64_t s = 0; s < n_strips_; ++s) {
      const Strip& strip = strips_[s];
      const Visible visible = strip.visible(first_key, sizes_.block_k, segments_, b, block);
      if (visible == Visible::none) continue;
      BlockMaskedRows masked;
      if (visible == Visible::some) masked = mask_.relative(strip, first_key, sizes_.block_k, segments_.row(b));
      isa_.attend(state(s), strip.padded_rows, query_.get() + s * kStripRows * sizes_.head_dim, sizes_.head_dim,
                  packed.key(pair, block), packed.value(pair, block), packed.finite[pair * packed.blocks + block],
                  sizes_.block_k, v_columns_, visible == Visible::some ? &masked : nullptr, scores_.get());
    }
  }

  const AttentionArguments& args_;
  const Isa& isa_;
  const KeySegments& segments_;
  const Sizes& sizes_;
  RowPositions position_;
  int64_t padded_rows_, v_columns_;
  Buffer query_, out_, maximum_, sum_, scores_;
  std::vector<Strip> strips_;
  std::vector<int64_t> row_index_;
  StripMask mask_;
  int64_t n_strips_ = 0;
};

}  // namespace detail

template <class ParallelFor>
void block_sparse_attention(const AttentionArguments& args, const Isa& isa, const ParallelFor& parallel_for,
                            int64_t threads) {
  using namespace detail;
  const Sizes& sizes = args.sizes;
  const int64_t query_blocks = sizes.query_blocks(), key_blocks = sizes.key_blocks();
  const int64_t words = mask_words(key_blocks);
  if (sizes.batch * sizes.q_heads * query_blocks == 0) return;
  const KeySegments segments(args.key_segment, sizes, args.key_segment.data || args.query_segment.data);

  const int64_t pair_floats = key_blocks * sizes.block_k * (sizes.head_dim + round_up(sizes.value_head_dim, isa.lanes));
  const int64_t pairs = pairs_of_a_group(sizes, pair_floats, sizes.group() * query_blocks, threads);
  PackedHeads packed(sizes, isa, pairs);
  for_each_head_group(sizes, pairs, [&](const HeadGroup& group) {
    std::vector<uint32_t> needed(group.count * words, 0);
    std::vector<int64_t> cost, order(group.count * sizes.group() * query_blocks);
    for (int64_t pair = 0; pair < group.count; ++pair) {
      for (int64_t g = 0; g < sizes.group(); ++g) {
        for (int64_t i = 0; i < query_blocks; ++i) {
          const uint32_t* row = args.block_mask.row(group.batch(pair), group.kv_head(pair) * sizes.group() + g, i);
          for (int64_t w = 0; w < words; ++w) needed[pair * words + w] |= row[w];
          cost.push_back(count_bits(row, words));
        }
      }
    }
    for_each_item(parallel_for, threads, group.count * key_blocks, [&] {
      return [&](int64_t item) {
        const int64_t pair = item % group.count, block = item / group.count;  // heads of a row lie next to each other
        if (!has_bit(needed.data() + pair * words, block)) return;
        const int64_t first_key = block * sizes.block_k;
        packed.pack(isa, group, args.key, segments, pair, block);
        packed.finite[pair * key_blocks + block] =
            isa.pack_values(packed.value(pair, block), args.value, group.batch(pair), group.kv_head(pair), first_key,
                            std::min(sizes.block_k, sizes.kv_len - first_key), sizes.block_k, sizes.value_head_dim,
                            segments.row(group.batch(pair)));
      };
    });
    std::iota(order.begin(), order.end(), int64_t{0});
    std::stable_sort(order.begin(), order.end(), [&](int64_t x, int64_t y) { return cost[x] > cost[y]; });
    for_each_item(parallel_for, threads, static_cast<int64_t>(order.size()), [&] {
      return [&, worker = AttentionWorker(args, isa, segments)](int64_t item) mutable {
        const int64_t head = order[item] / query_blocks, pair = head / sizes.group();
        const int64_t h = group.kv_head(pair) * sizes.group() + head % sizes.group();
        worker.run(packed, pair, group.batch(pair), h, order[item] % query_blocks);
      };
    });
  });
}

}  // namespace sampleattn::cpu
