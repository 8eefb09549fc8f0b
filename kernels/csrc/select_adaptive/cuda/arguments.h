// What one call of select_adaptive consists of, and which blocks a query tile scores, and how.
#pragma once

#include "shared/arithmetic.h"
#include "shared/cuda/types.h"
#include "shared/visibility.h"

namespace sampleattn::adaptive {

constexpr float kLog2E = 1.4426950408889634f;

struct Arguments {
  const void* query;            // [B, Hq, Sq, D]
  const void* key;              // [B, Hkv, Sk, D]
  const void* representatives;  // [B, Hkv, members, n, D] contiguous: the mean of a key block, then its landmarks
  Strides query_strides, key_strides;
  const float* log_weights;  // [B, Hkv, members, n] contiguous, -inf for a landmark that the block does not have
  const float* spreads;      // the same shape

  const int32_t* key_segment;  // [B|1, Sk] or null: every key may be seen; else those with 0
  int64_t key_segment_stride;
  const float* sink_logits;  // [Hq|1] or null: of a head, a logit that has its share of each row's attention
  int64_t sink_logit_stride;

  uint32_t* block_mask;  // [B, Hq, q_blocks, mask_words] contiguous
  int mask_words;

  int batch, q_heads, kv_heads, q_len, kv_len, head_dim, members;
  int q_offset, q_gap, window_slashes;  // q_gap: from a query block's end to the next one's beginning
  int last_rows;  // of the prompt: at least one of them in a query block, and it keeps every block
  bool keep_sink;
  float scale, scale_log2, tau_squared;  // scale_log2: scale * log2(e)
  float whole_number;  // log2 of the keys that the mean of a block without padding stands for
  DataType dtype;

  // As items() and quads() say, which take divisions.
  int item_count, quad_count;

  // Workspace on the device.
  int32_t* sinks;  // with key_segment, [B|1]: the first block with a key that may be seen; n if none is or not forced
  int32_t* row_ends;  // with key_segment, [B|1]: how many query rows come before the prompt's end; null: not asked for
  uint8_t* visible;  // with key_segment, [B|1, n]: the block has such a key
  int visible_stride;
  uint32_t* squares;  // [thread blocks, 2, quads, 512]: see select_adaptive/sm90/squares.h
  int8_t* codes;  // [B * Hkv, quads, 4 * members, D]: the representatives, see select_adaptive/sm90/codes.h
  float* code_terms;  // [B * Hkv, quads, 4, 2]: what a code's unit is worth, and the spread of the mean's keys

  // Where a query row stands.
  SAMPLEATTN_DEVICE int position(int row) const { return row + q_offset + row / kBlock * q_gap; }
  constexpr int n() const { return (kv_len + kBlock - 1) / kBlock; }
  constexpr int q_blocks() const { return (q_len + kBlock - 1) / kBlock; }
  constexpr int visibilities() const { return key_segment && key_segment_stride ? batch : 1; }
  // Query tiles of a key/value head, and pairs of them: what a thread block works on at a time.
  constexpr int tiles() const { return q_heads / kv_heads * q_blocks(); }
  constexpr int items() const { return batch * kv_heads * ((tiles() + 1) / 2); }
  // Groups of four key blocks, as many as whole tiles of representatives cover.
  constexpr int quads() const { return (n() + 15) / 16 * 4; }
};

// Behind the prompt's last row that is not padding.
SAMPLEATTN_DEVICE int row_end(Arguments const& args, int batch) {
  return args.key_segment ? args.row_ends[args.visibilities() > 1 ? batch : 0] : args.q_len;
}

// A block of queries of one head. Blocks from `end` on, and the sink, are forced. The keys of its own blocks, from `own`
// on, are scored exactly; of the blocks before, representatives are. A tile of which all is kept has an `end` and an
// `own` of 0, and nothing is scored for it. Where a prompt ends in a tile, rows behind that count for nothing.
struct QueryBlock {
  int head, row;  // row: first query row; q_len or more if there is no such tile
  int stop;  // behind the last row that counts
  int end, own, behind;  // behind: the first block that is not allowed by position
  bool scored;
};

// prompt_end: of the batch entry, see row_end.
SAMPLEATTN_DEVICE QueryBlock query_block(Arguments const& args, int head_kv, int tile, int prompt_end) {
  int const group = args.q_heads / args.kv_heads;
  int const row = tile / group * kBlock;
  if (row >= args.q_len) return {0, row, row, 0, 0, 0, false};
  int const stop = min(row + kBlock, row < prompt_end ? prompt_end : args.q_len);
  int const low = floor_div(args.position(row), kBlock);
  int const last = floor_div(args.position(stop - 1), kBlock);
  bool const scored = row >= prompt_end || stop <= prompt_end - args.last_rows;
  int const end = scored ? min(max(low - args.window_slashes + 1, 0), args.n()) : 0;
  int const own = scored ? min(max(low, 0), args.n()) : 0;
  return {head_kv * group + tile % group, row, stop, end, own, min(max(last + 1, 0), args.n()), scored};
}

// Two query tiles of one key/value head, which share everything that is scored: first the key blocks [first, behind) in
// full, then the representatives of the blocks [0, own). All are empty if neither tile is scored.
struct Item {
  int batch, head_kv, sink;
  QueryBlock tile[2];
  int first, behind, own;
};

SAMPLEATTN_DEVICE int forced_sink(Arguments const& args, int batch) {
  if (args.key_segment) return args.sinks[args.visibilities() > 1 ? batch : 0];
  return args.keep_sink ? 0 : args.n();
}

SAMPLEATTN_DEVICE bool is_visible(Arguments const& args, int batch, int block) {
  return !args.key_segment || args.visible[batch * args.visible_stride + block];
}

// Items of the longest prompts' ends come first.
SAMPLEATTN_DEVICE Item locate_item(Arguments const& args, int index) {
  int const heads = args.batch * args.kv_heads, pair = (args.tiles() + 1) / 2 - 1 - index / heads;
  Item item;
  item.batch = index % heads / args.kv_heads;
  item.head_kv = index % heads % args.kv_heads;
  item.sink = forced_sink(args, item.batch);
  int const end = row_end(args, item.batch);
  for (int i = 0; i < 2; ++i) item.tile[i] = query_block(args, item.head_kv, 2 * pair + i, end);
  QueryBlock const &one = item.tile[0], &other = item.tile[1];
  item.own = max(one.own, other.own);  // of a tile that is not scored it is 0
  item.first = one.scored && other.scored ? min(one.own, other.own) : item.own;
  item.behind = max(one.scored ? one.behind : 0, other.scored ? other.behind : 0);
  return item;
}

// Thread block `x` of `count` takes items in rounds, every other one backwards, so that all get as much work.
SAMPLEATTN_DEVICE int item_of_round(int round, int x, int count) {
  return round * count + (round % 2 ? count - 1 - x : x);
}

}  // namespace sampleattn::adaptive
