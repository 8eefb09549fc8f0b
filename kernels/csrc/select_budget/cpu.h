// The key blocks that sampled rows of a query block give too much attention to be left out (select_budget).
//
// A sampled row's softmax is exact: one pass over the keys gives every (row, key block) a maximum, a sum of exponentials
// and a sum of their squares, which become shares once the row is complete.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "block_sparse_attention/cpu.h"
#include "select_blocks/cpu.h"
#include "shared/cpu/isa.h"
#include "shared/cpu/rows.h"
#include "shared/cpu/strip.h"
#include "shared/cpu/strip_sums.h"
#include "shared/cpu/types.h"
#include "shared/cpu/work.h"

namespace sampleattn::cpu {

struct BudgetArguments {
  Sizes sizes;
  View query, key;
  Segments key_segment;
  float scale;
  int64_t q_offset;
  double budget, tau;
  int64_t rows;
  bool keep_sink;
  int64_t window_slashes;  // >= 1
};

namespace detail {

constexpr int64_t kBudgetRows = 4 * kStripRows;  // that are scored while a key block is near

// One query block of all query heads that share a KV head: their rows see the same keys, so strips hold rows of several
// heads where a head has few.
class BudgetWorker {
 public:
  BudgetWorker(const BudgetArguments& args, const Isa& isa, const KeySegments& segments)
      : args_(args), isa_(isa), sizes_(args.sizes), n_blocks_(sizes_.key_blocks()),
        sampled_(rows_of_a_block(args.rows, sizes_.k_len, sizes_.block_q)), sums_(sizes_, isa, segments),
        at_a_time_(std::min(kBudgetRows, round_up(rows(), kStripRows))), query_(at_a_time_ * sizes_.head_dim),
        maximum_(at_a_time_ * n_blocks_), sum_(at_a_time_ * n_blocks_), squares_(at_a_time_ * n_blocks_),
        strips_(at_a_time_ / kStripRows), heads_(sizes_.group()) {}

  // words: of the first of the heads; those of the others follow at head_words.
  void run(const PackedHeads& packed, const VisibleBlocks& visible, int64_t pair, int64_t b, int64_t kv_head,
           int64_t query_block, uint32_t* words, int64_t head_words) {
    const int64_t first_row = query_block * sizes_.block_q;
    const int64_t last_row = std::min(first_row + sizes_.block_q, sizes_.q_len) - 1;
    const int64_t own = floor_div(first_row + args_.q_offset, sizes_.block_k);
    const int64_t stop = std::clamp<int64_t>(floor_div(last_row + args_.q_offset, sizes_.block_k) + 1, 0, n_blocks_);
    const int64_t window = std::clamp<int64_t>(own - args_.window_slashes + 1, 0, stop);  // its first block
    const bool everything = args_.budget <= 0.0 || args_.tau <= 0.0;
    candidates_.clear();
    for (int64_t j = 0; j < window && !everything; ++j) {
      const bool allowed = visible.words[j / 32] >> (j % 32) & 1;
      if (allowed && !(args_.keep_sink && j == visible.first)) candidates_.push_back(j);
    }
    if (!candidates_.empty()) score(packed, pair, b, kv_head, query_block, stop);
    for (int64_t g = 0; g < sizes_.group(); ++g, words += head_words) {
      std::fill_n(words, mask_words(n_blocks_), 0);
      set_prefix(words, stop);
      for (int64_t w = 0; w < mask_words(n_blocks_); ++w) words[w] &= visible.words[w];
      if (!candidates_.empty()) drop(heads_[g], words);
    }
  }

 private:
  // What the rows of a head give each key block, summed over the rows that see a key.
  struct Shares {
    std::vector<float> share, squares;
    int64_t rows;
  };

  int64_t rows() const { return sizes_.group() * static_cast<int64_t>(sampled_.size()); }

  // Fills heads_ for the blocks before `stop`.
  void score(const PackedHeads& packed, int64_t pair, int64_t b, int64_t kv_head, int64_t query_block, int64_t stop) {
    sample_block(query_block, sizes_.block_q, sizes_.q_len, sampled_);
    for (Shares& head : heads_) {
      head.share.assign(stop, 0.0f);
      head.squares.assign(stop, 0.0f);
      head.rows = 0;
    }
    for (int64_t first = 0; first < rows(); first += at_a_time_) {
      const int64_t count = std::min(at_a_time_, rows() - first);
      begin(b, kv_head, first, count);
      for (int64_t block = 0; block < stop; ++block) {
        for (int64_t row = 0; row < count; row += kStripRows) {
          const int64_t at = row * n_blocks_ + block;
          sums_.run(strips_[row / kStripRows], query_.get() + row * sizes_.head_dim, packed.key(pair, block), b, block,
                    maximum_.get() + at, sum_.get() + at, squares_.get() + at, n_blocks_);
        }
      }
      for (int64_t r = 0; r < count; ++r) {
        const int64_t at = r * n_blocks_;
        float *sum = sum_.get() + at, *squares = squares_.get() + at;
        if (!isa_.normalise(maximum_.get() + at, sum, squares, stop)) continue;
        Shares& head = heads_[(first + r) / sampled_.size()];
        ++head.rows;
        for (int64_t j = 0; j < stop; ++j) {
          head.share[j] += sum[j];
          head.squares[j] += squares[j];
        }
      }
    }
  }

  // Packs `count` rows from the `first` on, head after head.
  void begin(int64_t b, int64_t kv_head, int64_t first, int64_t count) {
    const int64_t of_a_head = sampled_.size();
    for (int64_t r = 0; r < count;) {
      const int64_t g = (first + r) / of_a_head, i = (first + r) % of_a_head, n = std::min(of_a_head - i, count - r);
      const int64_t padding = r + n == count ? round_up(count, isa_.row_multiple) - count : 0;
      isa_.pack_query(query_.get() + r * sizes_.head_dim, args_.query, b, kv_head * sizes_.group() + g,
                      sampled_.data() + i, n, n + padding, sizes_.head_dim, args_.scale * kLog2e);
      r += n;
    }
    for (int64_t row = 0; row < count; row += kStripRows) {
      strips_[row / kStripRows].set(
          std::min<int64_t>(kStripRows, count - row), isa_.row_multiple, sizes_.k_len, true, 0,
          [&](int64_t r) { return sampled_[(first + row + r) % of_a_head] + args_.q_offset; },
          [](int64_t) { return 0; });
    }
  }

  // Clears the bits of the candidates that a head's rows can do without.
  void drop(const Shares& head, uint32_t* words) {
    const double rows = static_cast<double>(std::max<int64_t>(head.rows, 1));
    ascending_.clear();
    for (int64_t j : candidates_) {
      // What is not a number has no order, and is left out.
      ascending_.emplace_back(head.share[j] >= 0.0f ? head.share[j] : 0.0f, j);
    }
    std::sort(ascending_.begin(), ascending_.end());
    double before = 0.0;
    for (const auto& [sum, j] : ascending_) {
      const double share = sum / rows;
      const double squares = static_cast<double>(sizes_.block_q) * head.squares[j] / rows;
      const bool kept =
          share * (share + 2.0 * before) >= args_.budget * args_.budget || squares >= args_.tau * args_.tau;
      if (!kept) words[j / 32] &= ~(uint32_t{1} << (j % 32));
      before += share;
    }
  }

  const BudgetArguments& args_;
  const Isa& isa_;
  const Sizes& sizes_;
  int64_t n_blocks_;
  std::vector<int64_t> sampled_;  // rows of the query block
  StripSums sums_;
  int64_t at_a_time_;
  Buffer query_, maximum_, sum_, squares_;  // the latter three [at_a_time_, n_blocks_]
  std::vector<Strip> strips_;
  std::vector<Shares> heads_;
  std::vector<int64_t> candidates_;  // blocks that causality and padding allow and nothing forces
  std::vector<std::pair<float, int64_t>> ascending_;
};

}  // namespace detail

// block_mask: [B, Hq, n_query_blocks, n_words] contiguous.
template <class ParallelFor>
void select_budget(const BudgetArguments& args, const Isa& isa, const ParallelFor& parallel_for, int64_t threads,
                   uint32_t* block_mask) {
  using namespace detail;
  const Sizes& sizes = args.sizes;
  const int64_t pairs = sizes.batch * sizes.kv_heads, query_blocks = sizes.query_blocks();
  const int64_t blocks = sizes.key_blocks(), words = mask_words(blocks);
  if (pairs * sizes.group() * query_blocks * words == 0) return;
  const KeySegments segments(args.key_segment, sizes.batch, sizes.k_len, sizes.block_k,
                             args.key_segment.data != nullptr);
  std::vector<VisibleBlocks> visible;
  for (int64_t b = 0; b < sizes.batch; ++b) visible.emplace_back(args.key_segment, b, sizes.k_len, sizes.block_k);
  const int64_t pair_floats = sizes.head_dim * blocks * sizes.block_k;
  const int64_t for_threads = ceil_div(kItemsPerThread * threads, query_blocks);
  const int64_t step =
      std::clamp(std::max(kPackedFloats / std::max<int64_t>(pair_floats, 1), for_threads), int64_t{1}, pairs);
  const PackedHeads packed(sizes, isa, step);  // v_dim is 0: keys alone
  for (int64_t first = 0; first < pairs; first += step) {
    const int64_t count = std::min(step, pairs - first);
    for_each_item(parallel_for, threads, count * blocks, [&] {
      return [&](int64_t item) {
        const int64_t pair = item % count, block = item / count;
        const int64_t b = (first + pair) / sizes.kv_heads, kv_head = (first + pair) % sizes.kv_heads;
        pack_key_block(isa, sizes, args.key, segments, b, kv_head, block, packed.key(pair, block));
      };
    });
    // Late query blocks have the most blocks behind them: they come first.
    for_each_item(parallel_for, threads, count * query_blocks, [&] {
      return [&, worker = BudgetWorker(args, isa, segments)](int64_t item) mutable {
        const int64_t query_block = query_blocks - 1 - item / count, pair = item % count;
        const int64_t b = (first + pair) / sizes.kv_heads, kv_head = (first + pair) % sizes.kv_heads;
        worker.run(packed, visible[b], pair, b, kv_head, query_block,
                   block_mask + ((b * sizes.q_heads + kv_head * sizes.group()) * query_blocks + query_block) * words,
                   query_blocks * words);
      };
    });
  }
}

}  // namespace sampleattn::cpu
