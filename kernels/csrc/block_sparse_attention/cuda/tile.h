// Which rows and which key blocks a tile of work covers. Tiles are numbered with the key/value head outermost and
// the query heads that share it innermost, so that neighbours in the work list read the same keys.
#pragma once

#include "block_sparse_attention/cuda/arguments.h"
#include "shared/arithmetic.h"

namespace sampleattn {

struct Tile {
  int batch, head, head_kv, row;  // row: first query row
};

SAMPLEATTN_DEVICE Tile locate_tile(Arguments const& args, int tile) {
  int const group = args.q_heads / args.kv_heads;
  int const q_tiles = args.q_tiles();
  int const member = tile % group;
  int rest = tile / group;
  int const q_tile = rest % q_tiles;
  rest /= q_tiles;
  int const head_kv = rest % args.kv_heads;
  return {rest / args.kv_heads, head_kv * group + member, head_kv, q_tile * kTileRows};
}

// Key blocks [first, last] that position and length allow for a tile; last < first if none.
struct BlockRange {
  int first, last;
};

SAMPLEATTN_DEVICE BlockRange allowed_blocks(Arguments const& args, Tile const& tile) {
  int const first_position = args.position(tile.row);
  int const last_position = args.position(min(tile.row + kTileRows, args.q_len) - 1);
  int const last_key = args.causal ? min(last_position, args.kv_len - 1) : args.kv_len - 1;
  int const first_key = args.window > 0 ? max(first_position - args.window + 1, 0) : 0;
  return {first_key / args.block_k, last_key < 0 ? -1 : last_key / args.block_k};
}

// How many key blocks hold only keys that every row of the tile's query block sees: those can have been dropped.
SAMPLEATTN_DEVICE int blocks_behind(Arguments const& args, Tile const& tile) {
  int const position = args.position(tile.row / args.block_q * args.block_q);  // of the query block's first row
  return position >= args.kv_len - 1 ? args.key_blocks() : max(position + 1, 0) / args.block_k;
}

// Means that one tile of keys holds. They come before the keys that a tile of rows keeps.
constexpr int kMeanTile = 128;

SAMPLEATTN_DEVICE uint32_t const* mask_row(Arguments const& args, Tile const& tile) {
  return args.block_mask + tile.batch * args.mask_batch_stride + tile.head * args.mask_head_stride +
         int64_t(tile.row / args.block_q) * args.mask_words;
}

SAMPLEATTN_DEVICE uint32_t read(uint32_t const* word) {
#ifdef __CUDA_ARCH__
  return __ldg(word);
#else
  return *word;
#endif
}

// Word `index` of a mask row with the bits outside `range` cleared.
SAMPLEATTN_DEVICE uint32_t allowed_word(uint32_t const* row, BlockRange range, int index) {
  int const begin = range.first - index * 32, end = range.last + 1 - index * 32;
  if (begin >= 32 || end <= 0 || begin >= end) return 0;
  uint32_t const from = begin <= 0 ? 0xffffffffu : 0xffffffffu << begin;
  uint32_t const to = end >= 32 ? 0xffffffffu : (1u << end) - 1;
  return read(row + index) & from & to;
}

}  // namespace sampleattn
