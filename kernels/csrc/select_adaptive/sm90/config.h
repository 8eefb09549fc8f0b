// Compile-time shape of the selection kernel and the shared memory it needs.
#pragma once

#include "select_adaptive/cuda/arguments.h"
#include "shared/sm90/stages.h"

namespace sampleattn::sm90::adaptive {

using namespace cute;
using namespace sampleattn::adaptive;
using Arguments = sampleattn::adaptive::Arguments;

template <class Element_, int kHeadDim_, int kMembers_>
struct Config {
  using Element = Element_;
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kMembers = kMembers_;              // representatives of a key block
  static constexpr int kColumns = 128;                    // of a product: keys, or representatives
  static constexpr int kBlocks = kColumns / kMembers;     // key blocks whose representatives are one tile
  static constexpr int kQuads = kBlocks / 4;              // a thread holds the scores of one block of four
  static constexpr int kConsumers = 4;                    // warp groups of 64 query rows; two work on a query tile
  static constexpr int kWriters = 3;                      // warps; the fourth of their warp group is the producer
  static constexpr int kThreads = (kConsumers + 1) * 128;
  static constexpr int kStages = kHeadDim == 64 ? 6 : 3;
  static constexpr int kChunk = 64;  // columns of a swizzled row of shared memory
  static_assert(kHeadDim % kChunk == 0 && kMembers % 8 == 0 && kQuads >= 2);

  using Atom = GMMA::Layout_K_SW128_Atom<Element>;
  using LayoutQ = decltype(tile_to_shape(Atom{}, Shape<Int<kBlock>, Int<kHeadDim>, _4>{}));  // two items' tiles
  using LayoutK = decltype(tile_to_shape(Atom{}, Shape<Int<kColumns>, Int<kHeadDim>, Int<kStages>>{}));
  using Mma = decltype(make_tiled_mma(
      GMMA::ss_op_selector<Element, Element, float, Shape<_64, Int<kColumns>, Int<kHeadDim>>>()));

  // Representatives are bytes, of which a tile takes half of a stage.
  using CodeAtom =
      std::conditional_t<kHeadDim == 128, GMMA::Layout_K_SW128_Atom<int8_t>, GMMA::Layout_K_SW64_Atom<int8_t>>;
  using LayoutCodes = decltype(tile_to_shape(CodeAtom{}, Shape<Int<kColumns>, Int<kHeadDim>, Int<2 * kStages>>{}));
  using LayoutQueryCodes = decltype(tile_to_shape(CodeAtom{}, Shape<_64, Int<kHeadDim>>{}));
  using CodeMma = decltype(make_tiled_mma(SM90_64x128x32_S32S8S8_SS_TN{}));

  static constexpr int kTileElements = kBlock * kHeadDim;  // of queries, and of keys as of representatives
  static constexpr int kTileBytes = kTileElements * 2;
  static constexpr int kCodeBytes = kTileElements;
};

template <class C>
struct SharedStorage {
  alignas(1024) array_aligned<typename C::Element, cosize_v<typename C::LayoutQ>, 1024> query;
  alignas(1024) array_aligned<typename C::Element, cosize_v<typename C::LayoutK>, 1024> key;
  // Two items each: while the consumers work on one, the producer fetches the next and the writers end the last.
  Item item[2];
  float2 inverse_square[2][2][8][8];  // of the totals; of tile, warp, and its row and the one eight further down
  Barrier query_barrier[2];
  Barrier squares_barrier[2];  // only `full`: the writers give back the queries' place, and the squares' with it
  Barrier key_barrier[C::kStages];
};

}  // namespace sampleattn::sm90::adaptive
