// The sm_80 kernel: a thread block a tile of 128 query rows, a warp 16 of them. Keys and values have one buffer each:
// a run's values are copied while its scores are computed, the next run's keys while the values are multiplied.
#pragma once

#include "sampleattn/cuda/epilogue.h"
#include "sampleattn/cuda/mask.h"
#include "sampleattn/cuda/walk.h"
#include "sampleattn/sm80/instructions.h"
#include "sampleattn/sm80/products.h"

namespace sampleattn::sm80 {

// Starts copying a tile of rows from `first` on. Rows past `length` become zeros, and so do rows whose segment is
// negative if `segment` is given.
template <class C, class SharedTile, int kRows, class Element>
CUTE_DEVICE void copy_rows(Element* shared, Element const* global, int64_t row_stride, int first, int length,
                           int32_t const* segment) {
  for (int i = threadIdx.x; i < kRows * SharedTile::kVectors; i += C::kThreads) {
    int const row = i / SharedTile::kVectors, vector = i % SharedTile::kVectors, index = first + row;
    bool const read = index < length && (!segment || __ldg(segment + index) >= 0);
    copy_vector(shared + SharedTile::offset(row, vector), global + (read ? index * row_stride : 0) + vector * kVector,
                read);
  }
}

template <class C>
__global__ void __launch_bounds__(C::kThreads, 1) block_sparse_attention(const __grid_constant__ Arguments args) {
  using Element = typename C::Element;
  extern __shared__ __align__(128) unsigned char memory[];
  auto* const query = reinterpret_cast<Element*>(memory);
  Element* const key = query + C::Queries::kElements;
  Element* const value = key + C::Keys::kElements;

  // Thread blocks start in order, and the work list has the longest tiles first.
  Tile const tile = locate_tile(args, args.work[blockIdx.x].tile);
  auto head_of = [&](void const* data, Strides const& strides, int head) {
    return static_cast<Element const*>(data) + tile.batch * strides.batch + head * strides.head;
  };
  Element const* const queries = head_of(args.query, args.query_strides, tile.head);
  Element const* const keys = head_of(args.key, args.key_strides, tile.head_kv);
  Element const* const values = head_of(args.value, args.value_strides, tile.head_kv);
  int32_t const* const key_segment =
      args.key_segment ? args.key_segment + tile.batch * args.key_segment_stride : nullptr;
  auto copy_keys = [&](int run) {
    copy_rows<C, typename C::Keys, kKeyRun>(key, keys, args.key_strides.row, run, args.k_len, nullptr);
  };

  Warp<Element> const warp{int(threadIdx.x % 32)};
  int const warp_row = threadIdx.x / 32 * 16, own_row = warp_row + warp.lane / 4;
  float const scale_log2 = args.scale * 1.4426950408889634f;
  Tensor output = make_tensor<float>(Shape<Shape<_2, _2, Int<C::kHeadDimV / 8>>, _1, _1>{});
  Tensor scores = make_tensor<float>(Shape<Shape<_2, _2, Int<kKeyRun / 8>>, _1, _1>{});
  clear(output);
  SoftmaxState state;
  float correction[2];

  RunWalker walker(args, tile);
  OpenKeys open;
  open.enter(args, tile);
  int run = walker.next();
  if (run != kNoRun) {
    copy_rows<C, typename C::Queries, kTileRows>(query, queries, args.query_strides.row, tile.row, args.q_len, nullptr);
    copy_keys(run);
  }
  while (run != kNoRun) {
    int const flags = open.flags(args, run);
    wait_for_copies();
    __syncthreads();  // the keys are there, and nobody reads the values of the run before
    // 0 * NaN is NaN: values of keys that are valid for nobody are not read.
    copy_rows<C, typename C::Values, kKeyRun>(value, values, args.value_strides.row, run, args.k_len,
                                              flags & kClearInvalidValues ? key_segment : nullptr);
    clear(scores);
    multiply_keys<C>(warp, &scores(0), query, warp_row, key);
    KeyTile const tile_of_keys{run, kNoRun, flags};
    if (flags & kMaskPositions) mask_positions(scores, tile_of_keys, args, tile.row + own_row);
    if (flags & kMaskSegments) mask_segments(scores, tile_of_keys, args, tile.batch, tile.row + own_row);
    if (update_softmax(state, scores, correction, scale_log2)) rescale(output, correction);
    uint32_t weights[kKeyRun / 4];
    pack_weights(warp, weights, &scores(0));

    run = walker.next();
    wait_for_copies();
    __syncthreads();  // the values are there, and nobody reads the keys of this run any more
    if (run != kNoRun) copy_keys(run);
    multiply_values<C>(warp, &output(0), weights, value);
  }
  write_tile<C>(output, state, args, QueryTile{tile.batch * args.heads_q + tile.head, tile.row, 0}, own_row);
}

}  // namespace sampleattn::sm80
