// What one call of select_budget consists of, and which sampled rows a thread block scores.
#pragma once

#include "select_budget/sampled_rows.h"
#include "shared/cuda/types.h"
#include "shared/visibility.h"

namespace sampleattn::budget {

constexpr int kStripRows = 64;  // sampled rows of one head that a warp group scores
constexpr int kMostRangeBlocks = 64;  // key blocks that a thread block scores them with, at most
constexpr int kLeastRangeBlocks = 8;
constexpr int kMostKeyBlocks = 27648;  // whose shares and squares shared memory holds

struct Arguments {
  const void* query;  // [B, Hq, Sq, D]
  const void* key;    // [B, Hkv, Sk, D]
  Strides query_strides, key_strides;

  const int32_t* key_segment;  // [B|1, Sk] or null: every key may be seen; else those with 0
  int64_t key_segment_stride;
  const float* sink_logits;  // [Hq|1] or null: of a head, a logit that has its share of each row's attention
  int64_t sink_logit_stride;

  uint32_t* block_mask;  // [B, Hq, q_blocks, mask_words] contiguous
  int mask_words;

  int batch, q_heads, kv_heads, q_len, kv_len, head_dim;
  int q_offset, q_gap, window_slashes;  // q_gap: from a query block's end to the next one's beginning
  int rows_log2;  // of the sampled rows of a query block
  bool keep_sink;
  float scale_log2, budget, tau_squared;  // scale_log2: scale * log2(e)
  DataType dtype;

  // Query blocks come in batches, as many as the workspace holds the logarithms of.
  int first_query_block, query_blocks;
  int range_blocks;  // key blocks that a thread block scores its rows with

  // Workspace on the device.
  float*
      logs;  // [B * Hq, strips, n, 64 rows, 2]: of a row's exponentials in a key block the sum and the 2-norm, base 2
  const int32_t* sinks;  // [B|1]: the first block with a key that may be seen; null without key_segment
  const uint8_t* visible;  // [B|1, n]: the block has such a key; likewise
  int visibilities;  // entries of both: 1 or B

  // Where a query row stands.
  SAMPLEATTN_DEVICE int position(int row) const { return row + q_offset + row / kBlock * q_gap; }
  constexpr int n() const { return ceil_div(kv_len, kBlock); }
  constexpr int q_blocks() const { return ceil_div(q_len, kBlock); }
  constexpr int rows() const { return 1 << rows_log2; }
  constexpr int group() const { return q_heads / kv_heads; }
  constexpr int samples() const { return query_blocks << rows_log2; }  // of this batch, a head
  constexpr int strips() const { return ceil_div(samples(), kStripRows); }

  // Behind the last key block that rows of the query blocks before `end` may see.
  SAMPLEATTN_DEVICE int stop_of(int end) const {
    return min(max(floor_div(position(min(end * kBlock, q_len) - 1), kBlock) + 1, 0), n());
  }
};

// The strips of a head's sampled rows, in turn with those of the heads that share its keys: strip `index` is rows
// [64 of, 64 of + 64) of head `head`.
struct Strip {
  int head, of;
  bool exists;
};

SAMPLEATTN_DEVICE Strip strip_of(Arguments const& args, int kv_head, int index) {
  int const of = index / args.group();
  return {kv_head * args.group() + index % args.group(), of, of < args.strips()};
}

// The query row that is sample `sample` of this batch's, as kernels/select_budget/op.py has it, or -1.
SAMPLEATTN_DEVICE int sampled_row(Arguments const& args, int sample) {
  int const in_batch = sample >> args.rows_log2, block = args.first_query_block + in_batch;
  if (in_batch >= args.query_blocks) return -1;
  int const step = kBlock >> args.rows_log2, number = floor_div(args.position(block * kBlock), kBlock);
  int const row = block * kBlock + first_sampled_row(number, step) + (sample & (args.rows() - 1)) * step;
  return min(row, min((block + 1) * kBlock, args.q_len) - 1);
}

// A thread block's work: `strips` strips of one key/value head from strip `first` on, with key blocks [begin, end) of
// which those from `clear` on hold keys that not all rows see.
struct Item {
  int batch, kv_head, first;
  int begin, clear, end;
};

SAMPLEATTN_DEVICE int items_of_head(Arguments const& args, int strips) {
  return ceil_div(args.strips() * args.group(), strips);
}

// Thread blocks that score this batch's rows; some of them, in the future of all their rows, have nothing to do.
SAMPLEATTN_DEVICE int item_count(Arguments const& args, int strips) {
  int const ranges = ceil_div(args.stop_of(args.first_query_block + args.query_blocks), args.range_blocks);
  return items_of_head(args, strips) * args.batch * args.kv_heads * ranges;
}

// Neighbours work with the same keys; the last rows, which see most of them, come first.
SAMPLEATTN_DEVICE Item locate_item(Arguments const& args, int index, int strips) {
  int const items = items_of_head(args, strips), heads = args.batch * args.kv_heads;
  int const head = index / items % heads, range = index / items / heads;
  Item item;
  item.batch = head / args.kv_heads;
  item.kv_head = head % args.kv_heads;
  item.first = (items - 1 - index % items) * strips;
  int const lowest = item.first / args.group();
  int const highest = min((item.first + strips - 1) / args.group(), args.strips() - 1);
  int const first_block = args.first_query_block + (lowest * kStripRows >> args.rows_log2);
  int const last_sample = min((highest + 1) * kStripRows, args.samples()) - 1;
  item.begin = range * args.range_blocks;
  item.end =
      min(item.begin + args.range_blocks, args.stop_of(args.first_query_block + (last_sample >> args.rows_log2) + 1));
  int const all_see = floor_div(args.position(first_block * kBlock) + 1, kBlock);
  item.clear = args.key_segment ? item.begin : max(min(min(all_see, args.kv_len / kBlock), item.end), item.begin);
  return item;
}

// The key blocks of an item in the order in which they are scored: those that need a mask come first.
SAMPLEATTN_DEVICE int block_of_step(Item const& item, int step) {
  int const masked = item.end - item.clear;
  return step < masked ? item.clear + step : item.begin + step - masked;
}

}  // namespace sampleattn::budget
