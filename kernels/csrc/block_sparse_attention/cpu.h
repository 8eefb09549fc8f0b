// Block-sparse attention on the CPU: keys and values are packed once per KV head, query blocks walk their set bits.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <numeric>
#include <vector>

#include "shared/cpu/isa.h"
#include "shared/cpu/strip.h"
#include "shared/cpu/types.h"
#include "shared/cpu/work.h"

namespace sampleattn::cpu {

struct AttentionArguments {
  Sizes sizes;
  View query, key, value, out;
  float* lse;  // [B, Hq, Sq] contiguous
  BlockMask block_mask;
  Segments query_segment, key_segment;
  float scale;
  bool causal;
  int64_t q_offset;
  int64_t window;  // <= 0: none
};

namespace detail {

// KV heads are packed in groups of about 4 MiB: fresh memory costs a page fault every 4 KiB, about as much as packing.
constexpr int64_t kPackedFloats = int64_t{1} << 20;
constexpr int64_t kItemsPerThread = 8;  // query blocks of a group, so that threads end together
constexpr float kLog2e = 1.442695040888963f;

template <class F>
void for_each_set_bit(const uint32_t* words, int64_t n_words, const F& f) {
  for (int64_t w = 0; w < n_words; ++w) {
    for (uint32_t word = words[w]; word; word &= word - 1) f(w * 32 + std::countr_zero(word));
  }
}

inline int64_t count_bits(const uint32_t* words, int64_t n_words) {
  int64_t count = 0;
  for (int64_t w = 0; w < n_words; ++w) count += std::popcount(words[w]);
  return count;
}

// Packed keys and values of consecutive (batch, KV head) pairs.
struct PackedHeads {
  PackedHeads(const Sizes& sizes, const Isa& isa, int64_t pairs)
      : v_columns(round_up(sizes.v_dim, isa.lanes)), blocks(sizes.key_blocks()),
        key_floats(sizes.head_dim * sizes.block_k), value_floats(v_columns * sizes.block_k),
        keys(pairs * blocks * key_floats), values(pairs * blocks * value_floats), finite(pairs * blocks) {}

  float* key(int64_t pair, int64_t block) const { return keys.get() + (pair * blocks + block) * key_floats; }
  float* value(int64_t pair, int64_t block) const { return values.get() + (pair * blocks + block) * value_floats; }

  int64_t v_columns, blocks, key_floats, value_floats;
  Buffer keys, values;
  std::vector<char> finite;  // per block; not bool: written by several threads
};

// Scratch of one thread, and the work on one query block of one head.
class AttentionWorker {
 public:
  AttentionWorker(const AttentionArguments& args, const Isa& isa, const KeySegments& segments)
      : args_(args), isa_(isa), segments_(segments), sizes_(args.sizes),
        padded_rows_(round_up(sizes_.block_q, kStripRows)), v_columns_(round_up(sizes_.v_dim, isa.lanes)),
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
    for (int64_t s = 0; s * kStripRows < rows; ++s) {
      const int64_t row = first_row + s * kStripRows;
      float* lse = args_.lse + (b * sizes_.q_heads + h) * sizes_.q_len + row;
      isa_.finish(state(s), static_cast<int>(strips_[s].n_rows), sizes_.v_dim, v_columns_, args_.out, b, h, row, lse);
    }
  }

 private:
  RowState state(int64_t s) const {
    const int64_t row = s * kStripRows;
    return {out_.get() + row * v_columns_, maximum_.get() + row, sum_.get() + row};
  }

  void begin(int64_t b, int64_t h, int64_t first_row, int64_t rows) {
    row_index_.resize(rows);
    std::iota(row_index_.begin(), row_index_.end(), first_row);
    isa_.pack_query(query_.get(), args_.query, b, h, row_index_.data(), rows, round_up(rows, isa_.row_multiple),
                    sizes_.head_dim, args_.scale * kLog2e);
    std::fill_n(out_.get(), padded_rows_ * v_columns_, 0.0f);
    std::fill_n(maximum_.get(), padded_rows_, -__builtin_inff());
    std::fill_n(sum_.get(), padded_rows_, 0.0f);
    const int32_t* ids = args_.query_segment.row(b);
    n_strips_ = ceil_div(rows, kStripRows);
    for (int64_t s = 0; s < n_strips_; ++s) {
      const int64_t at = first_row + s * kStripRows;
      strips_[s].set(
          std::min<int64_t>(kStripRows, first_row + rows - at), isa_.row_multiple, sizes_.k_len, args_.causal,
          args_.window, [&](int64_t r) { return at + r + args_.q_offset; },
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
  const int64_t pairs = sizes.batch * sizes.kv_heads;
  const int64_t query_blocks = sizes.query_blocks(), key_blocks = sizes.key_blocks();
  const int64_t words = mask_words(key_blocks);
  if (pairs * sizes.group() * query_blocks == 0) return;
  const KeySegments segments(args.key_segment, sizes.batch, sizes.k_len, sizes.block_k,
                             args.key_segment.data || args.query_segment.data);

  const int64_t pair_floats = key_blocks * sizes.block_k * (sizes.head_dim + round_up(sizes.v_dim, isa.lanes));
  const int64_t for_threads = ceil_div(kItemsPerThread * threads, sizes.group() * query_blocks);
  const int64_t step =
      std::clamp(std::max(kPackedFloats / std::max<int64_t>(pair_floats, 1), for_threads), int64_t{1}, pairs);
  PackedHeads packed(sizes, isa, step);
  for (int64_t first = 0; first < pairs; first += step) {
    const int64_t count = std::min(step, pairs - first);
    std::vector<uint32_t> needed(count * words, 0);
    std::vector<int64_t> cost, order(count * sizes.group() * query_blocks);
    for (int64_t pair = 0; pair < count; ++pair) {
      const int64_t b = (first + pair) / sizes.kv_heads, kv_head = (first + pair) % sizes.kv_heads;
      for (int64_t g = 0; g < sizes.group(); ++g) {
        for (int64_t i = 0; i < query_blocks; ++i) {
          const uint32_t* row = args.block_mask.row(b, kv_head * sizes.group() + g, i);
          for (int64_t w = 0; w < words; ++w) needed[pair * words + w] |= row[w];
          cost.push_back(count_bits(row, words));
        }
      }
    }
    for_each_item(parallel_for, threads, count * key_blocks, [&] {
      return [&](int64_t item) {
        const int64_t pair = item % count, block = item / count;  // heads of a row lie next to each other
        if (!(needed[pair * words + block / 32] >> (block % 32) & 1)) return;
        const int64_t b = (first + pair) / sizes.kv_heads, kv_head = (first + pair) % sizes.kv_heads;
        const int64_t first_key = block * sizes.block_k;
        const int64_t n_keys = std::min(sizes.block_k, sizes.k_len - first_key);
        const int32_t* ids = segments.row(b);
        isa.pack_keys(packed.key(pair, block), args.key, b, kv_head, first_key, n_keys, sizes.block_k, sizes.head_dim,
                      ids);
        packed.finite[pair * key_blocks + block] = isa.pack_values(packed.value(pair, block), args.value, b, kv_head,
                                                                   first_key, n_keys, sizes.block_k, sizes.v_dim, ids);
      };
    });
    std::iota(order.begin(), order.end(), int64_t{0});
    std::stable_sort(order.begin(), order.end(), [&](int64_t x, int64_t y) { return cost[x] > cost[y]; });
    for_each_item(parallel_for, threads, static_cast<int64_t>(order.size()), [&] {
      return [&, worker = AttentionWorker(args, isa, segments)](int64_t item) mutable {
        const int64_t index = order[item];
        const int64_t head = index / query_blocks, query_block = index % query_blocks;
        const int64_t pair = head / sizes.group();
        const int64_t b = (first + pair) / sizes.kv_heads;
        const int64_t h = (first + pair) % sizes.kv_heads * sizes.group() + head % sizes.group();
        worker.run(packed, pair, b, h, query_block);
      };
    });
  }
}

}  // namespace sampleattn::cpu
