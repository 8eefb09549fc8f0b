// The producer warp: takes tiles off the work list, walks their mask bits and keeps the stages filled.
#pragma once

#include "block_sparse_attention/sm90/config.h"
#include "block_sparse_attention/sm90/walk.h"

namespace sampleattn::sm90 {

// A tile to work on, or tile < 0 if there is none left; `ascending`: the direction in which its keys are walked.
struct Assignment {
  int tile, blocks;
  bool ascending;
};

template <class C>
struct Producer {
  Arguments const& args;
  TensorMaps const& maps;
  SharedStorage<C>& shared;
  int const lane = threadIdx.x % 32;

  Stage<C::kQueryStages> query_stage;
  Stage<C::kKeyStages> key_stage;
  Stage<C::kValueStages> value_stage;

  // Of the current tile.
  int head, batch;
  OpenKeys open;

  // The values of a key tile are asked for after the keys of the next one, in the order the consumers need them.
  KeyTile pending{kNoRun, kNoRun, 0};
  int pending_head, pending_batch;

  CUTE_DEVICE void run() {
    Assignment item = take(next_ticket());
    while (item.tile >= 0) item = take(item.blocks > 0 ? produce_tile(item) : next_ticket());
    if (lane == 0) {
      if (pending.first_run != kNoRun) load_values();
      wait_empty(shared.query_barrier[query_stage.index], query_stage.parity);
      shared.query_tile[query_stage.index] = {0, 0, 0};
      TransactionBarrier::arrive(&shared.query_barrier[query_stage.index].full);
    }
  }

  CUTE_DEVICE int next_ticket() const { return lane == 0 ? atomicAdd(args.next_work, 1) : 0; }

  // Thread blocks that run side by side work on tiles of equal length, so they pass over the keys together. The next
  // round of tiles walks them the other way: what the last round read at its end is still in the L2 cache.
  CUTE_DEVICE Assignment take(int ticket) const {
    ticket = __shfl_sync(0xffffffffu, ticket, 0);
    if (ticket >= args.tiles()) return {-1, 0, false};
    int2 const item = __ldg(reinterpret_cast<int2 const*>(args.work) + ticket);
    return {item.x, item.y, ticket / int(gridDim.x) % 2 == 1};
  }

  // Fills the stages for one tile and returns the next ticket, drawn while the copies are under way.
  CUTE_DEVICE int produce_tile(Assignment const& item) {
    produce_queries(item);
    int index = item.tile;
    if constexpr (C::kTakesMeans) {
      produce_means(locate_tile(args, index));
      // Hides that the tile is the same: no register is left to keep what follows from it while means are produced.
      asm volatile("" : "+r"(index));
    }
    int const ticket = next_ticket();
    produce_kept(locate_tile(args, index), item.ascending);
    return ticket;
  }

  CUTE_DEVICE void produce_queries(Assignment const& item) {
    Tile const tile = locate_tile(args, item.tile);
    head = tile.head_kv;
    batch = tile.batch;
    if (lane == 0) {
      constexpr int kRunsPerBlock = C::kBlockK / kKeyRun, kRunsPerTile = C::kKeys / kKeyRun;
      Barrier& barrier = shared.query_barrier[query_stage.index];
      wait_empty(barrier, query_stage.parity);
      shared.query_tile[query_stage.index] = {tile.batch * args.q_heads + tile.head, tile.row,
                                              (item.blocks * kRunsPerBlock + kRunsPerTile - 1) / kRunsPerTile};
      TransactionBarrier::arrive_and_expect_tx(&barrier.full, C::kQueryBytes);
      load_rows<C::kHeadDim, C::kChunk, kTileRows>(maps.query, TMA::CacheHintSm90::EVICT_FIRST, &barrier.full,
                                                   shared.query.data() + query_stage.index * kTileRows * C::kHeadDim,
                                                   tile.row, tile.head, tile.batch);
    }
    query_stage.advance();
  }

  CUTE_DEVICE void produce_means(Tile const& tile) {
    static_assert(C::kKeys == kMeanTile);
    uint32_t const* row = mask_row(args, tile);
    int const end = blocks_behind(args, tile);
    CUTE_NO_UNROLL
    for (int first = 0; first < end; first += kMeanTile) produce_mean_tile(row, end, first);
  }

  CUTE_DEVICE void produce_kept(Tile const& tile, bool ascending) {
    walk_kept<C>(args, tile, ascending, lane, open,
                 [this](int first_run, int second_run) { produce_keys(first_run, second_run); });
  }

  CUTE_DEVICE void produce_keys(int first_run, int second_run) {
    if (lane != 0) return;
    KeyTile keys{first_run, second_run, 0};
    keys.flags = open.flags(args, first_run);
    if constexpr (C::kKeys == 2 * kKeyRun) keys.flags |= open.flags(args, second_run);
    produce(keys);
  }

  // The whole warp writes what the scores of a tile of means need; dropped blocks alone have a weight.
  CUTE_DEVICE void produce_mean_tile(uint32_t const* row, int end, int first) {
    int const stage = __shfl_sync(0xffffffffu, key_stage.index, 0);
    if (lane == 0) wait_empty(shared.key_barrier[stage], key_stage.parity);
    __syncwarp();
    int const of_head = (batch * args.kv_heads + head) * args.key_blocks();
    auto const* terms = reinterpret_cast<float2 const*>(args.mean_terms);
    CUTE_NO_UNROLL
    for (int column = lane; column < C::kKeys; column += 32) {
      int const block = first + column;
      bool const dropped = block < end && !(__ldg(row + block / 32) >> block % 32 & 1);
      shared.mean_terms[stage * C::kKeys + column] =
          dropped ? __ldg(terms + of_head + block) : make_float2(-INFINITY, 0.f);
    }
    __syncwarp();
    if (lane == 0) produce({first, first + kKeyRun, kMeans});
  }

  CUTE_DEVICE void produce(KeyTile const& keys) {
    Barrier& barrier = shared.key_barrier[key_stage.index];
    wait_empty(barrier, key_stage.parity);
    shared.key_tile[key_stage.index] = keys;
    TransactionBarrier::arrive_and_expect_tx(&barrier.full, C::kKeyBytes);
    auto* stage = shared.key.data() + key_stage.index * C::kKeys * C::kHeadDim;
    if (C::kTakesMeans && keys.flags == kMeans) {
      load_runs<C::kHeadDim, C::kChunk>(maps.mean_key, barrier, stage, keys, head, batch);
    } else {
      load_runs<C::kHeadDim, C::kChunk>(maps.key, barrier, stage, keys, head, batch);
    }
    key_stage.advance();
    if (pending.first_run != kNoRun) load_values();
    pending = keys;
    pending_head = head;
    pending_batch = batch;
  }

  CUTE_DEVICE void load_values() {
    Barrier& barrier = shared.value_barrier[value_stage.index];
    wait_empty(barrier, value_stage.parity);
    shared.value_tile[value_stage.index] = pending;
    TransactionBarrier::arrive_and_expect_tx(&barrier.full, C::kValueBytes);
    auto* stage = shared.value.data() + value_stage.index * C::kKeys * C::kHeadDimV;
    if (C::kTakesMeans && pending.flags == kMeans) {
      load_runs<C::kHeadDimV, C::kChunkV>(maps.mean_value, barrier, stage, pending, pending_head, pending_batch);
    } else {
      load_runs<C::kHeadDimV, C::kChunkV>(maps.value, barrier, stage, pending, pending_head, pending_batch);
    }
    value_stage.advance();
  }

  template <int kColumns, int kChunk>
  CUTE_DEVICE void load_runs(CUtensorMap const& map, Barrier& barrier, typename C::Element* stage, KeyTile const& keys,
                             int head, int batch) {
    load_rows<kColumns, kChunk, C::kKeys>(map, TMA::CacheHintSm90::EVICT_LAST, &barrier.full, stage, keys.first_run,
                                          head, batch);
    if constexpr (C::kKeys == 2 * kKeyRun && C::kBlockK == kKeyRun) {
      load_rows<kColumns, kChunk, C::kKeys>(map, TMA::CacheHintSm90::EVICT_LAST, &barrier.full,
                                            stage + kKeyRun * kChunk, keys.second_run, head, batch);
    }
  }
};

// Tiles without a kept block: zeros and -inf. Run by the other warps of the producer's warp group.
template <class C>
CUTE_DEVICE void write_empty_tiles(Arguments const& args) {
  int const thread = threadIdx.x - 32, threads = 96;
  for (int i = blockIdx.x; i < args.tiles(); i += gridDim.x) {
    int2 const item = __ldg(reinterpret_cast<int2 const*>(args.work) + i);
    if (item.y != 0) continue;
    Tile const tile = locate_tile(args, item.x);
    int const rows = min(kTileRows, args.q_len - tile.row);
    for (int r = thread; r < rows; r += threads) {
      args.lse[(int64_t(tile.batch) * args.q_heads + tile.head) * args.q_len + tile.row + r] = -INFINITY;
    }
    constexpr int kVectors = C::kHeadDimV / 8;
    for (int v = thread; v < rows * kVectors; v += threads) {
      int64_t const row = int64_t(tile.batch) * args.q_len + tile.row + v / kVectors;
      auto* out = static_cast<typename C::Element*>(args.out) + (row * args.q_heads + tile.head) * C::kHeadDimV;
      reinterpret_cast<uint4*>(out)[v % kVectors] = make_uint4(0, 0, 0, 0);
    }
  }
}

}  // namespace sampleattn::sm90
