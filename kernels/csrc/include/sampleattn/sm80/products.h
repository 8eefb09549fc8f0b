// The two matrix products of a warp: 16 query rows, one run of keys. `Warp` are the instructions, which a test replaces
// by what their manual says of all 32 lanes. Accumulators are laid out as mma.m16n8k16 does: (2 columns, 2 rows, n / 8).
#pragma once

#include "sampleattn/sm80/layout.h"

#ifdef __CUDACC__
#define SAMPLEATTN_UNROLL _Pragma("unroll")
#define SAMPLEATTN_UNROLL_4 _Pragma("unroll 4")
#else
#define SAMPLEATTN_UNROLL
#define SAMPLEATTN_UNROLL_4
#endif

namespace sampleattn::sm80 {

// scores [16, kKeyRun] += rows `row` to `row` + 15 of the queries times the keys.
template <class C, class Warp>
SAMPLEATTN_DEVICE void multiply_keys(Warp const& warp, typename Warp::Float* scores, typename C::Element const* query,
                                     int row, typename C::Element const* key) {
  // In parts: the addresses of the whole loop at once would not fit into the registers of head dim 256.
  SAMPLEATTN_UNROLL_4
  for (int k = 0; k < C::kHeadDim / 16; ++k) {
    typename Warp::Word a[4];
    warp.load(a, query, [&](int lane) {
      LaneVector const own = query_vector(lane);
      return C::Queries::offset(row + own.row, k * 2 + own.vector);
    });
    SAMPLEATTN_UNROLL
    for (int n = 0; n < kKeyRun / 16; ++n) {
      typename Warp::Word b[4];
      warp.load(b, key, [&](int lane) {
        LaneVector const own = key_vector(lane);
        return C::Keys::offset(n * 16 + own.row, k * 2 + own.vector);
      });
      warp.multiply(scores + n * 8, a, b[0], b[1]);
      warp.multiply(scores + n * 8 + 4, a, b[2], b[3]);
    }
  }
}

// Scores, by now weights, in the order in which the next product takes them as operand A.
template <class Warp>
SAMPLEATTN_DEVICE void pack_weights(Warp const& warp, typename Warp::Word (&weights)[kKeyRun / 4],
                                    typename Warp::Float const* scores) {
  SAMPLEATTN_UNROLL
  for (int i = 0; i < kKeyRun / 4; ++i) weights[i] = warp.pack_pair(scores[i * 2], scores[i * 2 + 1]);
}

// output [16, kHeadDimV] += weights times the values.
template <class C, class Warp>
SAMPLEATTN_DEVICE void multiply_values(Warp const& warp, typename Warp::Float* output,
                                       typename Warp::Word const (&weights)[kKeyRun / 4],
                                       typename C::Element const* value) {
  SAMPLEATTN_UNROLL
  for (int k = 0; k < kKeyRun / 16; ++k) {
    SAMPLEATTN_UNROLL
    for (int n = 0; n < C::kHeadDimV / 16; ++n) {
      typename Warp::Word b[4];
      warp.load_transposed(b, value, [&](int lane) {
        LaneVector const own = value_vector(lane);
        return C::Values::offset(k * 16 + own.row, n * 2 + own.vector);
      });
      warp.multiply(output + n * 8, weights + k * 4, b[0], b[1]);
      warp.multiply(output + n * 8 + 4, weights + k * 4, b[2], b[3]);
    }
  }
}

}  // namespace sampleattn::sm80
