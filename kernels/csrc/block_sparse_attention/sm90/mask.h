// The element-wise mask of the key tiles that a predicate cuts.
#pragma once

#include "block_sparse_attention/cuda/key_tile.h"
#include "block_sparse_attention/sm90/softmax.h"

namespace sampleattn {

// scores: accumulator; row: the thread's first query row (the second is 8 further down).
template <class Tensor>
CUTE_DEVICE void mask_positions(Tensor& scores, KeyTile const& keys, Arguments const& args, int row) {
  auto rows = as_rows(scores);
  int const lane = threadIdx.x % 4 * 2;
  CUTE_UNROLL
  for (int r = 0; r < 2; ++r) {
    int const position = args.position(row + 8 * r);
    int const last = args.causal ? min(position, args.kv_len - 1) : args.kv_len - 1;
    int const first = args.window > 0 ? position - args.window + 1 : 0;
    CUTE_UNROLL
    for (int run = 0; run < size<1>(rows) / 16; ++run) {
      int const begin = (run == 0 ? keys.first_run : keys.second_run) + lane;
      int const lowest = first - begin, highest = last - begin;
      CUTE_UNROLL
      for (int c = 0; c < 16; ++c) {
        int const column = c / 2 * 8 + c % 2;
        if (column < lowest || column > highest) rows(r, run * 16 + c) = -INFINITY;
      }
    }
  }
}

// Turns the scores of mean keys into those of whole blocks that were dropped; the others become -inf.
// terms: of every column the weight and the spread (cuda/means.h), a weight of -inf for blocks that were not dropped.
template <class Tensor>
CUTE_DEVICE void weigh_means(Tensor& scores, float2 const* terms, float const (&half_norm)[2]) {
  auto rows = as_rows(scores);
  auto const* pair = reinterpret_cast<float4 const*>(terms) + threadIdx.x % 4;
  CUTE_UNROLL
  for (int c = 0; c < size<1>(rows); c += 2) {
    float4 const own = pair[c / 2 * 4];
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      rows(r, c) += fminf(half_norm[r] * own.y, own.x) + own.x;
      rows(r, c + 1) += fminf(half_norm[r] * own.w, own.z) + own.z;
    }
  }
}

template <class Tensor>
CUTE_DEVICE void mask_segments(Tensor& scores, KeyTile const& keys, Arguments const& args, int batch, int row) {
  auto rows = as_rows(scores);
  int const lane = threadIdx.x % 4 * 2;
  int32_t const* query_segment = args.query_segment ? args.query_segment + batch * args.query_segment_stride : nullptr;
  int32_t const* key_segment = args.key_segment + batch * args.key_segment_stride;
  int segment[2];
  CUTE_UNROLL
  for (int r = 0; r < 2; ++r) {
    int const index = row + 8 * r;
    segment[r] = query_segment && index < args.q_len ? __ldg(query_segment + index) : 0;
  }
  CUTE_UNROLL
  for (int run = 0; run < size<1>(rows) / 16; ++run) {
    // Lane i loads the ids of keys i and i + 32; the lanes that hold a key's scores get its id by a shuffle.
    int const begin = run == 0 ? keys.first_run : keys.second_run;
    CUTE_UNROLL
    for (int half = 0; half < 2; ++half) {
      int const own_key = begin + half * 32 + threadIdx.x % 32;
      int const own = own_key < args.kv_len ? __ldg(key_segment + own_key) : -1;
      CUTE_UNROLL
      for (int c = 0; c < 8; ++c) {
        int const id = __shfl_sync(0xffffffffu, own, c / 2 * 8 + c % 2 + lane);
        CUTE_UNROLL
        for (int r = 0; r < 2; ++r) {
          if (id < 0 || id != segment[r]) rows(r, run * 16 + half * 8 + c) = -INFINITY;
        }
      }
    }
  }
}

}  // namespace sampleattn
