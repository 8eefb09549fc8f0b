// Softmax of sampled query rows, reduced to key blocks: one pass over the keys, no matrix of scores.
//
// Every (row, key block) gets a maximum and a sum of exponentials; once a row is complete they become shares of its
// softmax, which the callers add up per column and per slash, or over the kept blocks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "block_sparse_attention/cpu.h"
#include "shared/cpu/isa.h"
#include "shared/cpu/rows.h"
#include "shared/cpu/strip.h"
#include "shared/cpu/strip_sums.h"
#include "shared/cpu/types.h"
#include "shared/cpu/work.h"

namespace sampleattn::cpu {

struct SamplingArguments {
  Sizes sizes;
  View query, key;
  Segments key_segment;
  float scale;
  int64_t q_offset, chunk_n, sample_rows;
};

// The sampled rows of every batch entry; of one for all where all are padded alike.
inline std::vector<std::vector<int64_t>> sampled_rows(const SamplingArguments& args) {
  const Sizes& sizes = args.sizes;
  std::vector<std::vector<int64_t>> rows;
  for (int64_t b = 0; b < (args.key_segment.batch_stride ? sizes.batch : 1); ++b) {
    const int64_t end = row_end(args.key_segment, b, sizes.q_len, sizes.k_len, args.q_offset);
    rows.push_back(sampled_rows(end, args.chunk_n, args.sample_rows));
  }
  return rows;
}

namespace detail {

constexpr int64_t kShareFloats = int64_t{8} << 20;  // bounds the two [B, Hq, rows, n_key_blocks] arrays

// Some of a batch entry's sampled rows, which are scored at a time.
struct RowGroup {
  // At most `step` rows from the `first` sampled one on.
  void set(const std::vector<int64_t>& sampled, int64_t first, int64_t step, const SamplingArguments& args,
           const Isa& isa) {
    const int64_t size = sampled.size();
    rows = sampled.data() + std::min(first, size);
    count = std::clamp<int64_t>(size - first, 0, step);
    strips.resize(ceil_div(count, kStripRows));
    for (int64_t at = 0; at < count; at += kStripRows) {
      strips[at / kStripRows].set(
          std::min<int64_t>(kStripRows, count - at), isa.row_multiple, args.sizes.k_len, true, 0,
          [&](int64_t r) { return rows[at + r] + args.q_offset; }, [](int64_t) { return 0; });
    }
  }

  const int64_t* rows;
  int64_t count;
  std::vector<Strip> strips;
};

// Sums of one key block for the sampled rows of the query heads that share its KV head.
class SamplingWorker {
 public:
  SamplingWorker(const SamplingArguments& args, const Isa& isa, const KeySegments& segments)
      : args_(args), isa_(isa), segments_(segments), sums_(args.sizes, isa, segments),
        keys_(args.sizes.head_dim * args.sizes.block_k) {}

  // query: packed rows of head h at h * query_stride; maximum and sum: [rows, n_key_blocks] of head h likewise.
  void run(int64_t b, int64_t kv_head, int64_t block, const std::vector<Strip>& strips, const float* query,
           int64_t query_stride, float* maximum, float* sum, int64_t share_stride) {
    const Sizes& sizes = args_.sizes;
    pack_key_block(isa_, sizes, args_.key, segments_, b, kv_head, block, keys_.get());
    const int64_t n_blocks = sizes.key_blocks();
    for (size_t s = 0; s < strips.size(); ++s) {
      const int64_t row = static_cast<int64_t>(s) * kStripRows;
      for (int64_t g = 0; g < sizes.group(); ++g) {
        const int64_t at = g * share_stride + row * n_blocks + block;
        sums_.run(strips[s], query + g * query_stride + row * sizes.head_dim, keys_.get(), b, block, maximum + at,
                  sum + at, nullptr, n_blocks);
      }
    }
  }

 private:
  const SamplingArguments& args_;
  const Isa& isa_;
  const KeySegments& segments_;
  StripSums sums_;
  Buffer keys_;
};

// Calls visit(b, h, row, shares) for every sampled row, where shares [n_key_blocks] sum to 1, or is nullptr for a row
// without visible keys. Rows of one (b, h) come in order and from one thread at a time.
template <class ParallelFor, class Visit>
void for_each_sampled_row(const SamplingArguments& args, const Isa& isa, const ParallelFor& parallel_for,
                          int64_t threads, const Visit& visit) {
  const Sizes& sizes = args.sizes;
  const std::vector<std::vector<int64_t>> rows = sampled_rows(args);
  const int64_t heads = sizes.batch * sizes.q_heads, n_blocks = sizes.key_blocks();
  int64_t most = 0;
  for (const auto& own : rows) most = std::max<int64_t>(most, own.size());
  if (most == 0 || heads == 0 || n_blocks == 0) return;
  const KeySegments segments(args.key_segment, sizes.batch, sizes.k_len, sizes.block_k,
                             args.key_segment.data != nullptr);
  const int64_t limit = std::max<int64_t>(kShareFloats / (heads * n_blocks) / kStripRows, 1) * kStripRows;
  const int64_t step = std::min<int64_t>(round_up(most, kStripRows), limit);
  Buffer query(heads * step * sizes.head_dim), maximum(heads * step * n_blocks), sum(heads * step * n_blocks);
  std::vector<RowGroup> groups(rows.size());
  auto group_of = [&](int64_t b) -> const RowGroup& { return groups[rows.size() == 1 ? 0 : b]; };
  for (int64_t first = 0; first < most; first += step) {
    for (size_t b = 0; b < rows.size(); ++b) groups[b].set(rows[b], first, step, args, isa);
    for_each_item(parallel_for, threads, heads, [&] {
      return [&](int64_t item) {
        const RowGroup& group = group_of(item / sizes.q_heads);
        isa.pack_query(query.get() + item * step * sizes.head_dim, args.query, item / sizes.q_heads,
                       item % sizes.q_heads, group.rows, group.count, round_up(group.count, isa.row_multiple),
                       sizes.head_dim, args.scale * kLog2e);
      };
    });
    for_each_item(parallel_for, threads, sizes.batch * sizes.kv_heads * n_blocks, [&] {
      return [&, worker = SamplingWorker(args, isa, segments)](int64_t item) mutable {
        const int64_t pair = item / n_blocks;
        const int64_t head = pair * sizes.group();
        worker.run(pair / sizes.kv_heads, pair % sizes.kv_heads, item % n_blocks,
                   group_of(pair / sizes.kv_heads).strips, query.get() + head * step * sizes.head_dim,
                   step * sizes.head_dim, maximum.get() + head * step * n_blocks, sum.get() + head * step * n_blocks,
                   step * n_blocks);
      };
    });
    for_each_item(parallel_for, threads, heads, [&] {
      return [&](int64_t item) {
        const RowGroup& group = group_of(item / sizes.q_heads);
        for (int64_t r = 0; r < group.count; ++r) {
          const int64_t at = (item * step + r) * n_blocks;
          const bool any = isa.normalise(maximum.get() + at, sum.get() + at, nullptr, n_blocks);
          visit(item / sizes.q_heads, item % sizes.q_heads, group.rows[r], any ? sum.get() + at : nullptr);
        }
      };
    });
  }
}

}  // namespace detail

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
        const int64_t own = floor_div(row + args.q_offset, sizes.block_k);
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
      const int64_t own = floor_div(row + args.q_offset, sizes.block_k);
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
        detail::for_each_set_bit(block_mask.row(b, h, row / sizes.block_q), mask_words(n_blocks), [&](int64_t j) {
          if (j < n_blocks) kept += shares[j];
        });
        float& smallest = mass[b * sizes.q_heads + h];
        smallest = std::min(smallest, static_cast<float>(kept));
      });
}

}  // namespace sampleattn::cpu
