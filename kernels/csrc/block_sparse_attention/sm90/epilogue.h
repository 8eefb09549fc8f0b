// From a finished accumulator to the output tensor and the log-sum-exp.
#pragma once

#include <cfloat>

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

// Adds to finished sums `rows` what their query block's left-out keys give, if it has any: they become the output, and
// `inverse`, what they were to be scaled by, 1. sink: in powers of two.
template <class C, class Rows>
CUTE_DEVICE void add_rest(Rows& rows, float (&inverse)[2], float const (&sum)[2], float const (&offset)[2], float sink,
                          Arguments const& args, QueryTile const& tile) {
  int64_t const block = int64_t(tile.head) * args.q_blocks() + tile.row / args.block_q;
  float const share = __ldg(args.rest_share + block);
  float const level = __ldg(args.rest_level + block) * 1.4426950408889634f;
  if (!(share > 0.f)) return;  // of sampled rows that are not numbers nothing is known, and nothing is added
  float weight[2] = {0.f, 0.f}, ratio[2] = {0.f, 0.f};
  CUTE_UNROLL
  for (int r = 0; r < 2; ++r) {
    if (sum[r] != 0.f) {
      float const part = args.rest_part * exp2_approximate(fminf(level - offset[r] - __log2f(sum[r]), 0.f));
      float const stays = 1.f - part * share;
      // The sink has its share of both. It is finite here, for it is multiplied by 0 where nothing stays.
      float const beside = fminf(exp2_approximate(sink - offset[r]), FLT_MAX);
      float const scale = 1.f / fmaf(stays, beside, sum[r]);
      weight[r] = stays * scale;
      ratio[r] = part * sum[r] * scale;
    }
    inverse[r] = 1.f;
  }
  float const* const value = args.rest_value + block * C::kHeadDimV + threadIdx.x % 4 * 2;
  CUTE_UNROLL
  for (int c = 0; c < size<1>(rows); c += 2) {
    float2 const rest = __ldg(reinterpret_cast<float2 const*>(value + c * 4));
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      rows(r, c) = fmaf(rows(r, c), weight[r], ratio[r] * rest.x);
      rows(r, c + 1) = fmaf(rows(r, c + 1), weight[r], ratio[r] * rest.y);
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
  float sum[2], inverse[2];
  CUTE_UNROLL
  for (int r = 0; r < 2; ++r) {
    sum[r] = quad_sum(state.sum[r]);
    inverse[r] = sum[r] == 0.f ? 0.f : 1.f / (sum[r] + exp2_approximate(sink - state.offset[r]));
  }
  if constexpr (C::kTakesRest) {
    if (args.rest_share) add_rest<C>(rows, inverse, sum, state.offset, sink, args, tile);
  }
  CUTE_UNROLL
  for (int r = 0; r < 2; ++r) {
    int const index = row + 8 * r;
    bool const inside = index < args.q_len;
    if (inside && lane == 0 && column == 0) {
      float const lse = sum[r] == 0.f ? -INFINITY : state.offset[r] * 0.6931471805599453f + logf(sum[r]);
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
        word[j] = pack(rows(r, c) * inverse[r], rows(r, c + 1) * inverse[r], typename C::Element{});
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
