// The producer: one thread that asks for what the consumers will need, in their order.
#pragma once

#include "cute/arch/copy_sm90_tma.hpp"
#include "select_adaptive/sm90/config.h"

namespace sampleattn::sm90::adaptive {

struct TensorMaps {
  CUtensorMap query, key, codes;
};

CUTE_DEVICE void initialise(Barrier& barrier, int filled_by, int emptied_by) {
  TransactionBarrier::init(&barrier.full, filled_by);
  TransactionBarrier::init(&barrier.empty, emptied_by);
}

// The barriers of the tiles, by one thread; others: threads beside the consumers that empty a place of queries.
template <class C>
CUTE_DEVICE void initialise_tiles(SharedTiles<C>& tiles, TensorMaps const& maps, int others) {
  constexpr int kWarps = C::kConsumers * 4;
  for (Barrier& barrier : tiles.query_barrier) initialise(barrier, 1, kWarps + others);
  initialise(tiles.query_place, 1, kWarps);
  for (Barrier& barrier : tiles.key_barrier) initialise(barrier, 1, kWarps);
  prefetch_tma_descriptor(reinterpret_cast<TmaDescriptor const*>(&maps.query));
  prefetch_tma_descriptor(reinterpret_cast<TmaDescriptor const*>(&maps.key));
  prefetch_tma_descriptor(reinterpret_cast<TmaDescriptor const*>(&maps.codes));
}

template <class C>
struct Producer {
  Arguments const& args;
  TensorMaps const& maps;
  SharedTiles<C>& shared;
  Stage<2> query_stage;
  Stage<1> query_place;
  Stage<C::kStages> key_stage;

  // more: of an item, fetches what the consumers take between its own keys and representatives.
  template <class More>
  CUTE_DEVICE void run(More const& more) {
    for (int round = 0;; ++round) {
      int const index = item_of_round(round, blockIdx.x, gridDim.x);
      if (round * int(gridDim.x) >= args.item_count) return;
      if (index < args.item_count) {
        Item const item = locate_item(args, index);
        produce_queries(item);
        for (int block = item.first; block < item.behind; ++block) {
          produce_keys(maps.key, block * kBlock, item.head_kv, item.batch);
        }
        more(item);
        produce_codes(item);
      }
    }
  }

  CUTE_DEVICE void produce_queries(Item const& item) {
    Barrier& barrier = shared.query_barrier[query_stage.index];
    wait_empty(barrier, query_stage.parity);
    if constexpr (C::kQueryStages == 1) {
      // Until their place is free, the L2 cache is as near as these queries get.
      for_query_boxes(item, [&](QueryBlock const& tile, int, int column) {
        SM90_TMA_LOAD_4D::PREFETCH::copy(&maps.query, column, tile.row, tile.head, item.batch);
      });
      wait_empty(shared.query_place, query_place.parity);
      query_place.advance();
    }
    uint64_t* const full = &barrier.full;
    shared.item[query_stage.index] = item;
    TransactionBarrier::arrive_and_expect_tx(full, C::kTileBytes * query_tiles(item));
    auto* queries = shared.query.data() + query_stage.index % C::kQueryStages * 2 * C::kTileElements;
    for_query_boxes(item, [&](QueryBlock const& tile, int i, int column) {
      SM90_TMA_LOAD_4D::copy(&maps.query, full, static_cast<uint64_t>(TMA::CacheHintSm90::EVICT_FIRST),
                             queries + i * C::kTileElements + column * kBlock, column, tile.row, tile.head, item.batch);
    });
    query_stage.advance();
  }

  // A tile of keys, from `row` on.
  CUTE_DEVICE void produce_keys(CUtensorMap const& map, int row, int head, int batch) {
    CUTE_NO_UNROLL
    for (int first = 0; first < C::kHeadDim; first += C::kKeyPart) {
      unsigned char* stage = next_stage(C::kPartBytes);
      CUTE_UNROLL
      for (int column = 0; column < C::kKeyPart; column += C::kChunk) {
        SM90_TMA_LOAD_4D::copy(&map, full_barrier(), static_cast<uint64_t>(TMA::CacheHintSm90::EVICT_LAST),
                               stage + column * C::kColumns * 2, first + column, row, head, batch);
      }
      key_stage.advance();
    }
  }

  CUTE_DEVICE void produce_codes(Item const& item) {
    for (int block = 0; block < item.own; block += C::kBlocks) {
      unsigned char* stage = next_stage(C::kCodeBytes);
      int const quad = (item.batch * args.kv_heads + item.head_kv) * args.quad_count + block / 4;
      CUTE_UNROLL
      for (int column = 0; column < C::kHeadDim; column += C::kCodeChunk) {
        SM90_TMA_LOAD_2D::copy(&maps.codes, full_barrier(), static_cast<uint64_t>(TMA::CacheHintSm90::EVICT_LAST),
                               stage + column * C::kColumns, column, quad * 4 * C::kMembers);
      }
      key_stage.advance();
    }
  }

  CUTE_DEVICE int query_tiles(Item const& item) const { return item.tile[1].row < args.q_len ? 2 : 1; }

  template <class Take>
  CUTE_DEVICE void for_query_boxes(Item const& item, Take const& take) const {
    for (int i = 0; i < query_tiles(item); ++i) {
      CUTE_UNROLL
      for (int column = 0; column < C::kHeadDim; column += C::kChunk) take(item.tile[i], i, column);
    }
  }

  CUTE_DEVICE uint64_t* full_barrier() { return &shared.key_barrier[key_stage.index].full; }

  // Waits until the stage is free, and announces a tile.
  CUTE_DEVICE unsigned char* next_stage(int bytes) {
    wait_empty(shared.key_barrier[key_stage.index], key_stage.parity);
    TransactionBarrier::arrive_and_expect_tx(full_barrier(), bytes);
    return shared.key.data() + key_stage.index * C::kStageBytes;
  }
};

}  // namespace sampleattn::sm90::adaptive
