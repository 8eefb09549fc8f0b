// The key blocks that sampled rows of a query block give too much attention to be left out (select_budget).
//
// A sampled row's softmax is exact: one pass over the keys gives every (row, key block) a maximum, a sum of exponentials
// and a sum of their squares, which become shares once the row is complete.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "select_budget/arguments.h"
#include "select_budget/rest.h"
#include "select_budget/sampled_rows.h"
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

struct BudgetArguments {
  Sizes sizes;
  View query, key;
  Segments key_segment;
  SelectBudgetOptions options;
  Sinks sinks;
  const BudgetRest* rest = nullptr;  // nullptr: nobody asks for it
};

namespace detail {

constexpr double kLn2 = 0.693147180559945309;
constexpr int64_t kBudgetRows = 4 * kStripRows;  // that are scored while a key block is near

// One query block of all query heads that share a KV head: their rows see the same keys, so strips hold rows of several
// heads where a head has few.
class BudgetWorker {
 public:
  BudgetWorker(const BudgetArguments& args, const Isa& isa, const KeySegments& segments)
      : args_(args), isa_(isa), sizes_(args.sizes), n_blocks_(sizes_.key_blocks()),
        position_(args.options.q_offset, args.options.q_stride, sizes_.block_q),
        sampled_(rows_of_a_block(args.options.rows, sizes_.kv_len, sizes_.block_q)), sums_(sizes_, isa, segments),
        at_a_time_(std::min(kBudgetRows, round_up(rows(), kStripRows))), query_(at_a_time_ * sizes_.head_dim),
        maximum_(at_a_time_ * n_blocks_), sum_(at_a_time_ * n_blocks_), squares_(at_a_time_ * n_blocks_),
        strips_(at_a_time_ / kStripRows), heads_(sizes_.group()), allowed_(mask_words(n_blocks_)) {}

  // words: of the first of the heads; those of the others follow at head_words.
  void run(const PackedKeys& packed, const MeanValues& means, const VisibleBlocks& visible, int64_t pair, int64_t b,
           int64_t kv_head, int64_t query_block, uint32_t* words, int64_t head_words) {
    const int64_t first_row = query_block * sizes_.block_q;
    const int64_t last_row = std::min(first_row + sizes_.block_q, sizes_.q_len) - 1;
    const int64_t own = floor_div(position_(first_row), sizes_.block_k);
    const int64_t stop = std::clamp<int64_t>(floor_div(position_(last_row), sizes_.block_k) + 1, 0, n_blocks_);
    const int64_t window = std::clamp<int64_t>(own - args_.options.window_slashes + 1, 0, stop);  // its first block
    const bool everything = args_.options.budget <= 0.0 || args_.options.tau <= 0.0;
    candidates_.clear();
    for (int64_t j = 0; j < window && !everything; ++j) {
      if (has_bit(visible.words.data(), j) && !(args_.options.keep_sink && j == visible.first))
        candidates_.push_back(j);
    }
    if (!candidates_.empty() || args_.rest) score(packed, pair, b, kv_head, query_block, stop);
    std::fill(allowed_.begin(), allowed_.end(), 0);
    set_prefix(allowed_.data(), stop);
    for (int64_t w = 0; w < mask_words(n_blocks_); ++w) allowed_[w] &= visible.words[w];
    for (int64_t g = 0; g < sizes_.group(); ++g, words += head_words) {
      std::copy(allowed_.begin(), allowed_.end(), words);
      if (!candidates_.empty()) drop(heads_[g], words);
      if (args_.rest) add_rest(means, pair, b, kv_head * sizes_.group() + g, query_block, heads_[g], words);
    }
  }

 private:
  // What the rows of a head give each key block, summed over the rows that see a key.
  struct Shares {
    std::vector<float> share, squares;
    std::vector<float> of_keys;  // shares of what the sink leaves; for the rest alone
    double level;  // of their log-sum-exps
    int64_t rows;
  };

  int64_t rows() const { return sizes_.group() * static_cast<int64_t>(sampled_.size()); }

  // Fills heads_ for the blocks before `stop`.
  void score(const PackedKeys& packed, int64_t pair, int64_t b, int64_t kv_head, int64_t query_block, int64_t stop) {
    sample(query_block);
    for (Shares& head : heads_) {
      head.share.assign(stop, 0.0f);
      head.squares.assign(stop, 0.0f);
      if (args_.rest) head.of_keys.assign(stop, 0.0f);
      head.level = 0.0;
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
        const float level = isa_.normalise(maximum_.get() + at, sum, squares, stop);
        if (level == -__builtin_inff()) continue;
        const int64_t g = (first + r) / static_cast<int64_t>(sampled_.size());
        Shares& head = heads_[g];
        head.level += level;
        ++head.rows;
        const float sink = args_.sinks.of_head(kv_head * sizes_.group() + g) * kLog2e;
        const float left = 1.0f / (1.0f + __builtin_exp2f(sink - level));  // by the sink
        for (int64_t j = 0; j < stop; ++j) {
          head.share[j] += sum[j] * left;
          head.squares[j] += squares[j] * (left * left);
        }
        for (int64_t j = 0; args_.rest && j < stop; ++j) head.of_keys[j] += sum[j];
      }
    }
  }

  // Every so many rows from the first sampled one; past a prompt's end it is the last row, once more.
  void sample(int64_t query_block) {
    const int64_t step = sizes_.block_q / static_cast<int64_t>(sampled_.size());
    const int64_t number = floor_div(position_(query_block * sizes_.block_q), sizes_.block_q);
    int64_t row = query_block * sizes_.block_q + first_sampled_row(number, step);
    for (int64_t& sampled : sampled_) {
      sampled = std::min(row, std::min((query_block + 1) * sizes_.block_q, sizes_.q_len) - 1);
      row += step;
    }
  }

  // Packs `count` rows from the `first` on, head after head.
  void begin(int64_t b, int64_t kv_head, int64_t first, int64_t count) {
    const int64_t of_a_head = sampled_.size();
    for (int64_t r = 0; r < count;) {
      const int64_t g = (first + r) / of_a_head, i = (first + r) % of_a_head, n = std::min(of_a_head - i, count - r);
      const int64_t padding = r + n == count ? round_up(count, isa_.row_multiple) - count : 0;
      isa_.pack_query(query_.get() + r * sizes_.head_dim, args_.query, b, kv_head * sizes_.group() + g,
                      sampled_.data() + i, n, n + padding, sizes_.head_dim,
                      static_cast<float>(args_.options.scale) * kLog2e);
      r += n;
    }
    for (int64_t row = 0; row < count; row += kStripRows) {
      strips_[row / kStripRows].set(
          std::min<int64_t>(kStripRows, count - row), isa_.row_multiple, sizes_.kv_len, true, 0,
          [&](int64_t r) { return position_(sampled_[(first + row + r) % of_a_head]); }, [](int64_t) { return 0; });
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
      const bool kept = share * (share + 2.0 * before) >= args_.options.budget * args_.options.budget ||
                        squares >= args_.options.tau * args_.options.tau;
      if (!kept) clear_bit(words, j);
      before += share;
    }
  }

  // Keeps the given blocks, too, and writes what the head's rows give the allowed ones that are left out.
  void add_rest(const MeanValues& means, int64_t pair, int64_t b, int64_t h, int64_t query_block, const Shares& head,
                uint32_t* words) {
    const BudgetRest& rest = *args_.rest;
    const int64_t at = (b * sizes_.q_heads + h) * sizes_.query_blocks() + query_block, dim = sizes_.value_head_dim;
    const uint32_t* given = rest.given.row(b, h, query_block);
    const float rows = static_cast<float>(std::max<int64_t>(head.rows, 1));
    float* value = rest.rest_value + at * dim;
    std::fill_n(value, dim, 0.0f);
    double sum = 0.0, kept = 0.0;
    for (int64_t w = 0; w < mask_words(n_blocks_); ++w) {
      words[w] |= given[w] & allowed_[w];
      for (uint32_t left_out = allowed_[w] & ~words[w]; left_out; left_out &= left_out - 1) {
        const int64_t j = w * 32 + std::countr_zero(left_out);
        const float share = head.of_keys[j] / rows;
        const float* mean = means.mean(pair, j);
        for (int64_t d = 0; d < dim; ++d) value[d] += share * mean[d];
        sum += share;
      }
    }
    rest.share[at] = static_cast<float>(sum);
    // -inf if no row sees a key. 1 - sum would be roundings where little is kept.
    for_each_set_bit(words, mask_words(n_blocks_), [&](int64_t j) { kept += head.of_keys[j] / rows; });
    rest.level[at] = static_cast<float>(head.level * kLn2 / rows + std::log(kept));
  }

  const BudgetArguments& args_;
  const Isa& isa_;
  const Sizes& sizes_;
  int64_t n_blocks_;
  RowPositions position_;
  std::vector<int64_t> sampled_;  // rows of the query block
  StripSums sums_;
  int64_t at_a_time_;
  Buffer query_, maximum_, sum_, squares_;  // the latter three [at_a_time_, n_blocks_]
  std::vector<Strip> strips_;
  std::vector<Shares> heads_;
  std::vector<uint32_t> allowed_;  // words of the blocks that causality and padding allow
  std::vector<int64_t> candidates_;  // blocks that causality and padding allow and nothing forces
  std::vector<std::pair<float, int64_t>> ascending_;
};

}  // namespace detail

// block_mask: [B, Hq, n_query_blocks, n_words] contiguous. sizes.value_head_dim: 0 if args.rest is nullptr.
template <class ParallelFor>
void select_budget(const BudgetArguments& args, const Isa& isa, const ParallelFor& parallel_for, int64_t threads,
                   uint32_t* block_mask) {
  using namespace detail;
  const Sizes& sizes = args.sizes;
  const int64_t query_blocks = sizes.query_blocks(), blocks = sizes.key_blocks(), words = mask_words(blocks);
  if (sizes.batch * sizes.q_heads * query_blocks == 0) return;
  const KeySegments segments(args.key_segment, sizes, args.key_segment.data != nullptr);
  const std::vector<VisibleBlocks> visible = visible_blocks(args.key_segment, sizes);
  const int64_t pairs = pairs_of_a_group(sizes, sizes.head_dim * blocks * sizes.block_k, query_blocks, threads);
  const PackedKeys packed(sizes, pairs);
  const MeanValues means(sizes, pairs);
  for_each_head_group(sizes, pairs, [&](const HeadGroup& group) {
    for_each_item(parallel_for, threads, group.count * blocks, [&] {
      return [&, rows = Buffer(sizes.block_k * sizes.value_head_dim)](int64_t item) {
        const int64_t pair = item % group.count, block = item / group.count;
        packed.pack(isa, group, args.key, segments, pair, block);
        if (args.rest) means.fill(isa, group, args.rest->value, args.key_segment, pair, block, rows.get());
      };
    });
    for_each_query_block(parallel_for, threads, group, 1, [&] {
      return [&, worker = BudgetWorker(args, isa, segments)](int64_t pair, int64_t, int64_t query_block) mutable {
        const int64_t b = group.batch(pair), kv_head = group.kv_head(pair), h = kv_head * sizes.group();
        worker.run(packed, means, visible[b], pair, b, kv_head, query_block,
                   block_mask + ((b * sizes.q_heads + h) * query_blocks + query_block) * words, query_blocks * words);
      };
    });
  });
}

}  // namespace sampleattn::cpu
