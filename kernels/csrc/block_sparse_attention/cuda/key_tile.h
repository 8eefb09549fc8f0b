// What the threads that compute must know of the tiles of keys and of query rows that were loaded for them.
#pragma once

#include "block_sparse_attention/cuda/tile.h"

namespace sampleattn {

struct KeyTile {
  int first_run, second_run;  // first key of each run of kKeyRun rows; kNoRun if there is none
  int flags;
};
constexpr int kNoRun = 1 << 30;        // past every sequence: such a run is loaded as zeros
constexpr int kMaskPositions = 1;      // causality, the window or the sequence's end cuts this tile
constexpr int kMaskSegments = 2;       // segments cut this tile
constexpr int kClearInvalidValues = 4; // some keys of this tile are valid for nobody: their values may hold NaN

constexpr int kMeans = 8;              // not keys but means of key blocks, from block `first_run` on

struct QueryTile {
  int head;  // batch * q_heads + query head
  int row;
  int key_tiles;  // 0: no more work
};

// The keys that every row of a tile sees as far as positions go, and the rows' segment: they decide which masks a
// run of keys needs.
struct OpenKeys {
  int first, last;
  SegmentRange const* key_range;  // meaningful if there is a key_segment, as is:
  int row_segment;                // kManySegments if the rows differ
  static constexpr int kManySegments = -1;

  SAMPLEATTN_DEVICE void enter(Arguments const& args, Tile const& tile) {
    int const first_position = args.position(tile.row);
    int const last_position = args.position(min(tile.row + kTileRows, args.q_len) - 1);
    last = args.causal ? min(first_position, args.kv_len - 1) : args.kv_len - 1;
    first = args.window > 0 ? last_position - args.window + 1 : 0;
    if (args.key_segment) {
      key_range = args.key_range + (args.key_segment_stride ? tile.batch * args.key_runs() : 0);
      SegmentRange const rows =
          args.query_range[(args.query_segment_stride ? tile.batch * args.q_tiles() : 0) + tile.row / kTileRows];
      row_segment = rows.lowest == rows.highest ? rows.lowest : kManySegments;
    }
  }

  SAMPLEATTN_DEVICE int flags(Arguments const& args, int run) const {
    int flags = run + kKeyRun - 1 > last || run < first ? kMaskPositions : 0;
    if (args.key_segment && run < args.kv_len) {
      SegmentRange const keys = key_range[run / kKeyRun];
      bool const uniform = keys.lowest == keys.highest && keys.lowest == row_segment && keys.lowest >= 0;
      if (!uniform) flags |= kMaskSegments;
      if (keys.lowest < 0) flags |= kClearInvalidValues;
    }
    return flags;
  }
};

}  // namespace sampleattn
