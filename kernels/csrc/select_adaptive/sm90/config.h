// Compile-time shape of the selection kernel and the shared memory it needs.
#pragma once

#include "select_adaptive/cuda/arguments.h"
#include "shared/sm90/stages.h"

namespace sampleattn::sm90::adaptive {

using namespace cute;
using namespace sampleattn::adaptive;
using Arguments = sampleattn::adaptive::Arguments;

// A multiprocessor holds two items' queries at once, or one item's if the head dim leaves no room for a second one's.
constexpr int query_stages(int head_dim) { return head_dim <= 128 ? 2 : 1; }

// Stages of keys and of representatives: what shared memory has room for.
constexpr int key_stages(int head_dim) {
  if (head_dim <= 64) return 6;
  return head_dim == 96 || head_dim == 192 ? 5 : 3;
}

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
  static constexpr int kQueryStages = query_stages(kHeadDim), kStages = key_stages(kHeadDim);
  static constexpr int kChunk = kHeadDim % 64 == 0 ? 64 : 32;  // columns of a swizzled row of shared memory
  static constexpr int kKeyPart = kHeadDim > 128 ? kHeadDim / 2 / kChunk* kChunk : kHeadDim;  // columns in a stage
  static constexpr int kParts = kHeadDim / kKeyPart;  // stages that a tile of keys takes
  static_assert(kHeadDim % kKeyPart == 0 && kMembers % 8 == 0 && kQuads >= 2);

  using Atom = std::conditional_t<kChunk == 64, GMMA::Layout_K_SW128_Atom<Element>, GMMA::Layout_K_SW64_Atom<Element>>;
  using LayoutQ = decltype(tile_to_shape(Atom{}, Shape<Int<kBlock>, Int<kHeadDim>, Int<2 * kQueryStages>>{}));
  using Mma = decltype(make_tiled_mma(
      GMMA::ss_op_selector<Element, Element, float, Shape<_64, Int<kColumns>, Int<kKeyPart>>>()));

  // Representatives are bytes, in swizzled rows of kCodeChunk. Those of a query row lie where its numbers were, a chunk
  // of bytes in the place of a chunk of numbers.
  static constexpr int kCodeChunk = kHeadDim % 128 == 0 ? 128 : kHeadDim % 64 == 0 ? 64 : 32;
  using CodeAtom = std::conditional_t<
      kCodeChunk == 128, GMMA::Layout_K_SW128_Atom<int8_t>,
      std::conditional_t<kCodeChunk == 64, GMMA::Layout_K_SW64_Atom<int8_t>, GMMA::Layout_K_SW32_Atom<int8_t>>>;
  static constexpr int kChunkBytes = kBlock * kChunk * 2;  // of a tile of queries
  using LayoutQueryCodes = decltype(tile_to_shape(CodeAtom{}, Shape<Int<kChunkBytes / kCodeChunk>, Int<kHeadDim>>{}));

  static constexpr int kTileElements = kBlock * kHeadDim;  // of queries
  static constexpr int kTileBytes = kTileElements * 2;
  static constexpr int kPartBytes = kColumns * kKeyPart * 2;
  static constexpr int kCodeBytes = kColumns * kHeadDim;
  static constexpr int kStageBytes = kPartBytes > kCodeBytes ? kPartBytes : kCodeBytes;
  template <class CopyAtom, int kWidth, int kStride>
  using Stages = decltype(append<3>(tile_to_shape(CopyAtom{}, Shape<Int<kColumns>, Int<kWidth>>{}),
                                    Layout<Int<kStages>, Int<kStride>>{}));
  using LayoutK = Stages<Atom, kKeyPart, kStageBytes / 2>;
  using LayoutCodes = Stages<CodeAtom, kHeadDim, kStageBytes>;
  using CodeMma = decltype(make_tiled_mma(SM90_64x128x32_S32S8S8_SS_TN{}));
};

// What the producer fills: tiles of queries, and of keys or representatives.
template <class C>
struct SharedTiles {
  alignas(1024) array_aligned<typename C::Element, cosize_v<typename C::LayoutQ>, 1024> query;
  alignas(1024) array_aligned<unsigned char, C::kStages * C::kStageBytes, 1024> key;
  Item item[2];  // while the consumers work on one, the producer fetches the next
  Barrier query_barrier[2];
  Barrier query_place;  // only `empty`, and only if there is one place for queries: the consumers give it back
  Barrier key_barrier[C::kStages];
};

// And what the writers read, of two items: while the consumers work on one, the writers end the last.
template <class C>
struct SharedStorage : SharedTiles<C> {
  float2 inverse_square[2][2][8][8];  // of the totals; of tile, warp, and its row and the one eight further down
  Barrier squares_barrier[2];  // only `full`: the writers give back the queries' place, and the squares' with it
};

}  // namespace sampleattn::sm90::adaptive
