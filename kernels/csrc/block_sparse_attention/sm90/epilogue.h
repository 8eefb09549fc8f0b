// From a finished accumulator to the output tensor and the log-sum-exp.
#pragma once

#include "block_sparse_attention/cuda/key_tile.h"
#include "block_sparse_attention/sm90/softmax.h"
#include "cutlass/numeric_types.h"

namespace sampleattn {

CUTE_DEVICE uint32_t pack(float low, float high, cutlass::bfloat16_t) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

CUTE_DEVICE uint32_t pack(float low, float high, cutlass::half_t) {
  uint32_t packed;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

// Word j of lane i of a quad becomes word i of lane j.
CUTE_DEVICE void transpose_in_quad(uint32_t (&word)[4]) {
  CUTE_UNROLL
  for (int step = 1; step <= 2; step *= 2) {
    bool const high = threadIdx.x & step;
    CUTE_UNROLL
    for (int j = 0; j < 4; ++j) {
      if (j & step) continue;
      uint32_t const received = __shfl_xor_sync(0xffffffffu, high ? word[j] : word[j + step], step);
      if (high) {
        word[j] = received;
      } else {
        word[j + step] = received;
      }
    }
  }
}

// row: the thread's first row of the tile (the second is 8 further down); column: the accumulator's first.
template <class C, class Tensor>
CUTE_DEVICE void write_tile(Tensor& accumulator, SoftmaxState const& state, Arguments const& args,
                            QueryTile const& tile, int row, int column = 0) {
  int const batch = tile.head / args.q_heads, head = tile.head % args.q_heads;
  row += tile.row;
  // Hides where the row comes from: the compiler would compute the addresses in every step of the main loop.
  asm volatile("" : "+r"(row));
  auto rows = as_rows(accumulator);
  int const lane = threadIdx.x % 4;
  float const sink = args.sinks ? __ldg(args.sinks + head * args.sink_stride) * 1.4426950408889634f : -INFINITY;
  CUTE_UNROLL
  for (int r = 0; r < 2; ++r) {
    int const index = row + 8 * r;
    float const sum = quad_sum(state.sum[r]);
    float const inverse = sum == 0.f ? 0.f : 1.f / (sum + exp2_approximate(sink - state.offset[r]));
    bool const inside = index < args.q_len;
    if (inside && lane == 0 && column == 0) {
      float const lse = sum == 0.f ? -INFINITY : state.offset[r] * 0.6931471805599453f + logf(sum);
      args.lse[int64_t(tile.head) * args.q_len + index] = lse;
    }
    auto* out = static_cast<typename C::Element*>(args.out) +
                ((int64_t(batch) * args.q_len + index) * args.q_heads + head) * C::kHeadDimV + column;
    CUTE_UNROLL
    for (int group = 0; group < size<1>(rows) / 8; ++group) {
      uint32_t word[4];
      CUTE_UNROLL
      for (int j = 0; j < 4; ++j) {
        int const c = (group * 4 + j) * 2;
        word[j] = pack(rows(r, c) * inverse, rows(r, c + 1) * inverse, typename C::Element{});
      }
      transpose_in_quad(word);
      if (inside) {
        // Written once and not read here: it should not push keys out of the L2 cache.
        __stcs(reinterpret_cast<uint4*>(out + group * 32 + lane * 8), make_uint4(word[0], word[1], word[2], word[3]));
      }
    }
  }
}

}  // namespace sampleattn
