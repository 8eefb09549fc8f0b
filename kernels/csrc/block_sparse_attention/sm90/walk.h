// How a producer warp passes over the keys that a tile of query rows keeps, and asks for rows of a tensor.
#pragma once

#include "block_sparse_attention/cuda/key_tile.h"
#include "block_sparse_attention/cuda/tile.h"
#include "cute/arch/copy_sm90_tma.hpp"

namespace sampleattn::sm90 {

using namespace cute;

struct TensorMaps {
  CUtensorMap query, key, value;
  CUtensorMap mean_key, mean_value;  // of kernels that take means
};

// Loads `rows` x kColumns as chunks of kChunk columns; all chunks of a tile of kTile rows lie one after another.
template <int kColumns, int kChunk, int kTile, class Element>
CUTE_DEVICE void load_rows(CUtensorMap const& map, TMA::CacheHintSm90 hint, uint64_t* barrier, Element* shared, int row,
                           int head, int batch) {
  CUTE_UNROLL
  for (int column = 0; column < kColumns; column += kChunk) {
    SM90_TMA_LOAD_4D::copy(&map, barrier, static_cast<uint64_t>(hint), shared + column * kTile, column, row, head,
                           batch);
  }
}

// Index of the highest set bit, or the lowest if `ascending`.
CUTE_DEVICE int next_bit(uint32_t bits, bool ascending) { return ascending ? __ffs(bits) - 1 : 31 - __clz(bits); }

// Calls produce_keys(first_run, second_run) for every tile of C::kKeys keys that `tile` keeps, one after another, once
// `open` is that of the tile. Run by a whole warp, whose lanes look at a word of the index each.
template <class C, class Produce>
CUTE_DEVICE void walk_kept(Arguments const& args, Tile const& tile, bool ascending, int lane, OpenKeys& open,
                           Produce const& produce_keys) {
  BlockRange const range = allowed_blocks(args, tile);
  uint32_t const* row = mask_row(args, tile);
  open.enter(args, tile);
  constexpr int kRunsPerBlock = C::kBlockK / kKeyRun, kRunsPerTile = C::kKeys / kKeyRun;

  int unpaired = kNoRun;
  int const first_chunk = range.first / 1024, chunks = range.last / 1024 - first_chunk + 1;
  for (int i = 0; i < chunks; ++i) {
    int const chunk = first_chunk + (ascending ? i : chunks - 1 - i);
    uint32_t const own = allowed_word(row, range, chunk * 32 + lane);
    uint32_t words = __ballot_sync(0xffffffffu, own != 0);
    while (words) {
      int const word = next_bit(words, ascending);
      words ^= 1u << word;
      uint32_t bits = __shfl_sync(0xffffffffu, own, word);
      while (bits) {
        int const bit = next_bit(bits, ascending);
        bits ^= 1u << bit;
        int const key = ((chunk * 32 + word) * 32 + bit) * C::kBlockK;
        if constexpr (kRunsPerBlock == kRunsPerTile) {
          produce_keys(key, key + kKeyRun);
        } else if constexpr (kRunsPerTile == 1) {
          produce_keys(ascending ? key : key + kKeyRun, kNoRun);
          produce_keys(ascending ? key + kKeyRun : key, kNoRun);
        } else if (unpaired == kNoRun) {
          unpaired = key;
        } else {
          produce_keys(unpaired, key);
          unpaired = kNoRun;
        }
      }
    }
  }
  if (unpaired != kNoRun) produce_keys(unpaired, kNoRun);
}

}  // namespace sampleattn::sm90
