// The producer: one thread that asks for what the consumers will need, in their order.
#pragma once

#include "cute/arch/copy_sm90_tma.hpp"
#include "select_adaptive/sm90/config.h"

namespace sampleattn::sm90::adaptive {

struct TensorMaps {
  CUtensorMap query, key, codes;
};

template <class C>
struct Producer {
  Arguments const& args;
  TensorMaps const& maps;
  SharedStorage<C>& shared;
  Stage<2> query_stage;
  Stage<C::kStages> key_stage;

  CUTE_DEVICE void run() {
    for (int round = 0;; ++round) {
      int const index = item_of_round(round, blockIdx.x, gridDim.x);
      if (round * int(gridDim.x) >= args.item_count) return;
      if (index < args.item_count) produce(locate_item(args, index));
    }
  }

  CUTE_DEVICE void produce(Item const& item) {
    Barrier& barrier = shared.query_barrier[query_stage.index];
    wait_empty(barrier, query_stage.parity);
    uint64_t* const full = &barrier.full;
    bool const both = item.tile[1].row < args.q_len;
    shared.item[query_stage.index] = item;
    TransactionBarrier::arrive_and_expect_tx(full, C::kTileBytes * (both ? 2 : 1));
    for (int i = 0; i < (both ? 2 : 1); ++i) {
      auto* tile = shared.query.data() + (query_stage.index * 2 + i) * C::kTileElements;
      CUTE_UNROLL
      for (int column = 0; column < C::kHeadDim; column += C::kChunk) {
        SM90_TMA_LOAD_4D::copy(&maps.query, full, static_cast<uint64_t>(TMA::CacheHintSm90::EVICT_FIRST),
                               tile + column * kBlock, column, item.tile[i].row, item.tile[i].head, item.batch);
      }
    }
    query_stage.advance();

    for (int block = item.first; block < item.behind; ++block) {
      auto* stage = next_stage(C::kTileBytes);
      int const row = block * kBlock;
      CUTE_UNROLL
      for (int column = 0; column < C::kHeadDim; column += C::kChunk) {
        SM90_TMA_LOAD_4D::copy(&maps.key, full_barrier(), static_cast<uint64_t>(TMA::CacheHintSm90::EVICT_LAST),
                               stage + column * C::kColumns, column, row, item.head_kv, item.batch);
      }
      key_stage.advance();
    }
    for (int block = 0; block < item.own; block += C::kBlocks) {
      auto* stage = next_stage(C::kCodeBytes);
      int const quad = (item.batch * args.kv_heads + item.head_kv) * args.quad_count + block / 4;
      SM90_TMA_LOAD_2D::copy(&maps.codes, full_barrier(), static_cast<uint64_t>(TMA::CacheHintSm90::EVICT_LAST), stage,
                             0, quad * 4 * C::kMembers);
      key_stage.advance();
    }
  }

  CUTE_DEVICE uint64_t* full_barrier() { return &shared.key_barrier[key_stage.index].full; }

  // Waits until the stage is free, and announces a tile.
  CUTE_DEVICE typename C::Element* next_stage(int bytes) {
    wait_empty(shared.key_barrier[key_stage.index], key_stage.parity);
    TransactionBarrier::arrive_and_expect_tx(full_barrier(), bytes);
    return shared.key.data() + key_stage.index * C::kTileElements;
  }
};

}  // namespace sampleattn::sm90::adaptive
