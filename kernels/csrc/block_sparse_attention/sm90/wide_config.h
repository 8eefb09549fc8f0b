// Compile-time shape of the kernel for head dim 512, and the shared memory it needs.
//
// A multiprocessor's registers cannot hold 128 rows of an output this wide: the accumulator alone would take them all.
// So a tile is worked on by a cluster of two thread blocks, 64 rows each. Both read the same keys and values; each
// loads a half of every stage and sends it to both, so that the L2 cache is read no more often than for 128 rows.
//
// Of a thread block's two consumers each accumulates one half of the output's columns, for which it needs the weights
// of all keys of a tile. Scores are split by keys instead, one run of 64 each, so that none is computed twice. The
// consumers tell each other their rows' largest scores and their weights through shared memory.
#pragma once

#include "block_sparse_attention/sm90/config.h"

namespace sampleattn::sm90 {

template <class Element_, int kBlockK_>
struct WideConfig {
  using Element = Element_;
  static constexpr int kHeadDim = 512, kHeadDimV = 512;
  static constexpr int kKeys = 2 * kKeyRun;  // keys of one tile
  static constexpr int kBlockK = kBlockK_;  // keys of one bit of the index
  static constexpr bool kTakesRest = false;  // its addresses would spill
  static constexpr int kCluster = 2;  // thread blocks that work on a tile
  static constexpr int kRows = kTileRows / kCluster;
  static constexpr int kConsumers = 2;
  static constexpr int kColumns = kHeadDimV / kConsumers;  // of the output, of a consumer
  static constexpr int kThreads = (kConsumers + 1) * 128;
  static constexpr int kProducerRegisters = 56, kConsumerRegisters = 224;
  static_assert(kRows == 64, "what a warp group's product takes");

  // A stage holds kKeyColumns of one run's keys, or kColumns of kValueKeys keys' values: what one consumer multiplies
  // between two waits. Twice as many of half the size took 1.27 times as long.
  static constexpr int kStages = 4;  // of each consumer
  static constexpr int kKeyColumns = 128;
  static constexpr int kValueKeys = 32;
  static constexpr int kStageElements = kKeyRun * kKeyColumns;
  static_assert(kStageElements == kValueKeys * kColumns);

  static constexpr int kChunk = 64;  // columns that one swizzled row of shared memory holds
  using AtomK = GMMA::Layout_K_SW128_Atom<Element>;
  using AtomV = GMMA::Layout_MN_SW128_Atom<Element>;
  using LayoutQ = decltype(tile_to_shape(AtomK{}, Shape<Int<kRows>, Int<kKeyColumns>, Int<kHeadDim / kKeyColumns>>{}));
  using LayoutK = decltype(tile_to_shape(AtomK{}, Shape<Int<kKeyRun>, Int<kKeyColumns>, Int<kStages>>{}));
  using LayoutV =
      decltype(tile_to_shape(AtomV{}, Shape<Int<kColumns>, Int<kValueKeys>, Int<kStages>>{}, Step<_2, _1, _3>{}));
  using LayoutP = decltype(tile_to_shape(AtomK{}, Shape<Int<kRows>, Int<kKeys>>{}));
  static_assert(cosize_v<LayoutK> == kStages * kStageElements && cosize_v<LayoutV> == kStages * kStageElements);

  using MmaQK = decltype(make_tiled_mma(
      GMMA::ss_op_selector<Element, Element, float, Shape<Int<kRows>, Int<kKeyRun>, Int<kKeyColumns>>>()));
  using MmaPV = decltype(make_tiled_mma(
      GMMA::ss_op_selector<Element, Element, float, Shape<Int<kRows>, Int<kColumns>, Int<kValueKeys>>, GMMA::Major::K,
                           GMMA::Major::MN>()));

  static constexpr int kQueryBytes = kRows * kHeadDim * 2;
  static constexpr int kStageBytes = kStageElements * 2;
};

// The part of the values that a stage holds.
template <class C>
struct WideValues {
  using Element = typename C::Element;
  static constexpr int kKeys = C::kValueKeys, kHeadDimV = C::kColumns, kChunkV = C::kChunk;
};

template <class C>
struct WideSharedStorage {
  using Element = typename C::Element;
  alignas(1024) array_aligned<Element, cosize_v<typename C::LayoutQ>, 1024> query;
  alignas(1024) array_aligned<Element, cosize_v<typename C::LayoutP>, 1024> weights;
  alignas(1024) array_aligned<Element, C::kStages * C::kStageElements, 1024> stages[C::kConsumers];
  alignas(16) QueryTile query_tile;
  alignas(16) KeyTile key_tile[C::kConsumers][C::kStages];  // of what a stage holds: one run, or a part of one
  // What the consumers tell each other of their rows: the largest score, and the sum of exponentials.
  float largest[C::kConsumers][C::kRows];
  float sum[C::kConsumers][C::kRows];
  Barrier query_barrier;
  Barrier barrier[C::kConsumers][C::kStages];
};

}  // namespace sampleattn::sm90
