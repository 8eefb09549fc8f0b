// Softmax of sampled query rows, reduced to key blocks: one pass over the keys, no matrix of scores.
//
// Every (row, key block) gets a maximum and a sum of exponentials; once a row is complete they become shares of its
// softmax, which the callers add up per column and per slash, or over the kept blocks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "sample_scores/arguments.h"
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
  SamplingOptions options;
};

// The last sample_rows rows of each of chunk_n equal chunks of the rows before the end, ascending.
inline std::vector<int64_t> sampled_rows(int64_t end, int64_t chunk_n, int64_t sample_rows) {
  std::vector<int64_t> rows;
  for (int64_t g = 0; g < chunk_n; ++g) {
    const int64_t begin = g * end / chunk_n, stop = (g + 1) * end / chunk_n;
    for (int64_t row = std::max(begin, stop - sample_rows); row < stop; ++row) rows.push_back(row);
  }
  return rows;
}

// The sampled rows of every batch entry; of one for all where all are padded alike.
inline std::vector<std::vector<int64_t>> sampled_rows(const SamplingArguments& args) {
  const Sizes& sizes = args.sizes;
  std::vector<std::vector<int64_t>> rows;
  for (int64_t b = 0; b < (args.key_segment.batch_stride ? sizes.batch : 1); ++b) {
    const int64_t end = row_end(args.key_segment, b, sizes.q_len, sizes.kv_len, RowPositions(args.options.q_offset));
    rows.push_back(sampled_rows(end, args.options.chunk_n, args.options.sample_rows));
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
          std::min<int64_t>(kStripRows, count - at), isa.row_multiple, args.sizes.kv_len, true, 0,
          [&](int64_t r) { return rows[at + r] + args.options.q_offset; }, [](int64_t) { return 0; });
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
  const KeySegments segments(args.key_segment, sizes, args.key_segment.data != nullptr);
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
                       sizes.head_dim, static_cast<float>(args.options.scale) * kLog2e);
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
          const bool any = isa.normalise(maximum.get() + at, sum.get() + at, nullptr, n_blocks) != -__builtin_inff();
          visit(item / sizes.q_heads, item % sizes.q_heads, group.rows[r], any ? sum.get() + at : nullptr);
        }
      };
    });
  }
}

}  // namespace detail

}  // namespace sampleattn::cpu
