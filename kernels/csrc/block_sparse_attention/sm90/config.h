// Compile-time shape of one kernel and the shared memory it needs.
#pragma once

#include <cute/tensor.hpp>

#include "block_sparse_attention/cuda/key_tile.h"
#include "shared/sm90/stages.h"

namespace sampleattn::sm90 {

using namespace cute;

template <class Element_, int kHeadDim_, int kHeadDimV_, int kBlockK_, int kKeys_, int kQueryStages_, int kKeyStages_,
          int kValueStages_>
struct Config {
  using Element = Element_;
  static constexpr int kHeadDim = kHeadDim_, kHeadDimV = kHeadDimV_;
  static constexpr int kKeys = kKeys_;      // keys of one tile: one or two runs
  static constexpr int kBlockK = kBlockK_;  // keys of one bit of the index
  static constexpr int kQueryStages = kQueryStages_, kKeyStages = kKeyStages_, kValueStages = kValueStages_;
  static constexpr bool kTakesMeans = false;  // whether dropped blocks are taken by their means
  static constexpr bool kTakesRest = true;    // whether what left-out keys give can be added
  static constexpr int kConsumers = 2;  // warp groups of 64 query rows
  // Key tiles whose scores a consumer holds. Head dim 64 leaves registers for two, and its products are too short to
  // hide their own latency.
  static constexpr int kScoreBuffers = kHeadDim <= 64 ? 2 : 1;
  static constexpr int kThreads = (kConsumers + 1) * 128;
  // Together what the launch gives: 168 a thread.
  static constexpr int kProducerRegisters = 56, kConsumerRegisters = 224;
  static_assert(kKeys == kKeyRun || kKeys == 2 * kKeyRun);

  // Columns that one swizzled row of shared memory holds: 128 bytes, or 64 where the head dim asks for it.
  static constexpr int kChunk = kHeadDim % 64 == 0 ? 64 : 32;
  static constexpr int kChunkV = kHeadDimV % 64 == 0 ? 64 : 32;
  using AtomK = std::conditional_t<kChunk == 64, GMMA::Layout_K_SW128_Atom<Element>, GMMA::Layout_K_SW64_Atom<Element>>;
  using AtomV =
      std::conditional_t<kChunkV == 64, GMMA::Layout_MN_SW128_Atom<Element>, GMMA::Layout_MN_SW64_Atom<Element>>;
  using LayoutQ = decltype(tile_to_shape(AtomK{}, Shape<Int<kTileRows>, Int<kHeadDim>, Int<kQueryStages>>{}));
  using LayoutK = decltype(tile_to_shape(AtomK{}, Shape<Int<kKeys>, Int<kHeadDim>, Int<kKeyStages>>{}));
  using LayoutV =
      decltype(tile_to_shape(AtomV{}, Shape<Int<kHeadDimV>, Int<kKeys>, Int<kValueStages>>{}, Step<_2, _1, _3>{}));

  using MmaQK =
      decltype(make_tiled_mma(GMMA::ss_op_selector<Element, Element, float, Shape<_64, Int<kKeys>, Int<kHeadDim>>>()));
  using MmaPV =
      decltype(make_tiled_mma(GMMA::rs_op_selector<Element, Element, float, Shape<_64, Int<kHeadDimV>, Int<kKeys>>,
                                                   GMMA::Major::K, GMMA::Major::MN>()));

  static constexpr int kQueryBytes = kTileRows * kHeadDim * 2;
  static constexpr int kKeyBytes = kKeys * kHeadDim * 2;
  static constexpr int kValueBytes = kKeys * kHeadDimV * 2;
};

template <class C>
struct WithMeans : C {
  static constexpr bool kTakesMeans = true, kTakesRest = false;
};

template <class C>
struct SharedStorage {
  alignas(1024) array_aligned<typename C::Element, cosize_v<typename C::LayoutQ>, 1024> query;
  alignas(1024) array_aligned<typename C::Element, cosize_v<typename C::LayoutK>, 1024> key;
  alignas(1024) array_aligned<typename C::Element, cosize_v<typename C::LayoutV>, 1024> value;
  alignas(16) QueryTile query_tile[C::kQueryStages];
  alignas(16) KeyTile key_tile[C::kKeyStages];
  alignas(16) KeyTile value_tile[C::kValueStages];
  alignas(16) float2 mean_terms[C::kTakesMeans ? C::kKeyStages * C::kKeys : 2];  // of key stages that hold means
  Barrier query_barrier[C::kQueryStages];
  Barrier key_barrier[C::kKeyStages];
  Barrier value_barrier[C::kValueStages];
};

}  // namespace sampleattn::sm90
