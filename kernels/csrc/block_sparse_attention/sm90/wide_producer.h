// The producer warp of the kernel for head dim 512. Those of a cluster walk the same bits: each loads its rows of the
// queries, and a half of every part of the keys and values, for both thread blocks.
#pragma once

#include "block_sparse_attention/cuda/tile.h"
#include "block_sparse_attention/sm90/walk.h"
#include "block_sparse_attention/sm90/wide_config.h"

namespace sampleattn::sm90 {

template <class C>
struct WideProducer {
  Arguments const& args;
  TensorMaps const& maps;
  WideSharedStorage<C>& shared;
  int const rank;  // of this thread block in its cluster
  int const lane = threadIdx.x % 32;

  Stage<1> query_stage;
  Stage<C::kStages> stage;  // of both consumers

  // Of the current tile.
  int head, batch;
  OpenKeys open;

  // The work list is dealt out to the clusters, one round from the first cluster on and the next from the last: the
  // longest tiles come first, so all get nearly the same, and no ticket needs to be passed between thread blocks. Each
  // round walks the keys in the other direction: what the last one read at its end is still in the L2 cache.
  CUTE_DEVICE void run() {
    int begin = 0;
    for (bool reversed = false; begin < args.tiles(); reversed = !reversed) {
      // Read anew each round: no register is left to keep what follows from it meanwhile.
      int blocks;
      asm volatile("mov.u32 %0, %%nctaid.x;" : "=r"(blocks));
      int const clusters = blocks / C::kCluster, cluster = blockIdx.x / C::kCluster;
      int const place = begin + (reversed ? clusters - 1 - cluster : cluster);
      begin += clusters;
      if (place >= args.tiles()) continue;
      int2 const item = __ldg(reinterpret_cast<int2 const*>(args.work) + place);
      if (item.y > 0) produce_tile(locate_tile(args, item.x), item.y, reversed);
    }
    if (lane == 0) {
      wait_empty(shared.query_barrier, query_stage.parity);
      shared.query_tile = {0, 0, 0};
      TransactionBarrier::arrive(&shared.query_barrier.full);
    }
  }

  CUTE_DEVICE void produce_tile(Tile const& tile, int blocks, bool ascending) {
    head = tile.head_kv;
    batch = tile.batch;
    if (lane == 0) {
      constexpr int kRunsPerBlock = C::kBlockK / kKeyRun, kRunsPerTile = C::kKeys / kKeyRun;
      Barrier& barrier = shared.query_barrier;
      wait_empty(barrier, query_stage.parity);
      shared.query_tile = {tile.batch * args.q_heads + tile.head, tile.row,
                           (blocks * kRunsPerBlock + kRunsPerTile - 1) / kRunsPerTile};
      TransactionBarrier::arrive_and_expect_tx(&barrier.full, C::kQueryBytes);
      load_rows<C::kHeadDim, C::kChunk, C::kRows>(maps.query, TMA::CacheHintSm90::EVICT_FIRST, &barrier.full,
                                                  shared.query.data(), tile.row + rank * C::kRows, tile.head,
                                                  tile.batch);
    }
    query_stage.advance();
    walk_kept<C>(args, tile, ascending, lane, open, [this](int first_run, int second_run) {
      if (lane == 0) produce_keys(first_run, second_run);
    });
  }

  CUTE_DEVICE void produce_keys(int first_run, int second_run) {
    int const flags = open.flags(args, first_run) | open.flags(args, second_run);
    constexpr int kKeysEach = kKeyRun / C::kCluster;
    CUTE_NO_UNROLL
    for (int column = 0; column < C::kHeadDim; column += C::kKeyColumns) {
      CUTE_UNROLL
      for (int consumer = 0; consumer < C::kConsumers; ++consumer) {
        int const run = consumer == 0 ? first_run : second_run;
        enter(consumer, {run, kNoRun, flags});
        CUTE_UNROLL
        for (int chunk = 0; chunk < C::kKeyColumns; chunk += C::kChunk) {
          load_for_both(maps.key, consumer, chunk * kKeyRun + rank * kKeysEach * C::kChunk, column + chunk,
                        run + rank * kKeysEach);
        }
      }
      stage.advance();
    }
    constexpr int kColumnsEach = C::kColumns / C::kCluster;
    CUTE_NO_UNROLL
    for (int key = 0; key < C::kKeys; key += C::kValueKeys) {
      int const row = key < kKeyRun ? first_run + key : second_run + key - kKeyRun;
      CUTE_UNROLL
      for (int consumer = 0; consumer < C::kConsumers; ++consumer) {
        enter(consumer, {row, kNoRun, flags});
        CUTE_UNROLL
        for (int chunk = 0; chunk < kColumnsEach; chunk += C::kChunk) {
          int const column = rank * kColumnsEach + chunk;
          load_for_both(maps.value, consumer, column * C::kValueKeys, consumer * C::kColumns + column, row);
        }
      }
      stage.advance();
    }
  }

  // The current stage, once both thread blocks have emptied it. What this one waits for then comes from both.
  CUTE_DEVICE void enter(int consumer, KeyTile const& keys) {
    Barrier& barrier = shared.barrier[consumer][stage.index];
    wait_empty(barrier, stage.parity);
    shared.key_tile[consumer][stage.index] = keys;
    TransactionBarrier::arrive_and_expect_tx(&barrier.full, C::kStageBytes);
  }

  // One box of a tensor, into the current stage of both thread blocks at `offset`.
  CUTE_DEVICE void load_for_both(CUtensorMap const& map, int consumer, int offset, int column, int row) {
    SM90_TMA_LOAD_MULTICAST_4D::copy(
        &map, &shared.barrier[consumer][stage.index].full, uint16_t((1 << C::kCluster) - 1),
        static_cast<uint64_t>(TMA::CacheHintSm90::EVICT_LAST),
        shared.stages[consumer].data() + stage.index * C::kStageElements + offset, column, row, head, batch);
  }
};

}  // namespace sampleattn::sm90
