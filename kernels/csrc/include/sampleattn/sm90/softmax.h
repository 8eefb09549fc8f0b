// Online softmax over the accumulator of one warp group: 64 rows, of which each thread holds parts of two.
#pragma once

#include <cute/tensor.hpp>

namespace sampleattn::sm90 {

using namespace cute;

CUTE_DEVICE float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// max(x, low), and NaN if x is NaN.
CUTE_DEVICE float at_least(float x, float low) {
  float y;
  asm("max.NaN.ftz.f32 %0, %1, %2;" : "=f"(y) : "f"(x), "f"(low));
  return y;
}

// 2^x for x <= 127 without the special function unit: x = n + r, 2^r by a minimax polynomial on [-1/2, 1/2], n added
// to the exponent. Relative error 7.5e-5, or 2.6e-6 with the fourth degree: well below what rounding to bfloat16
// (2e-3) or float16 (2.4e-4) adds.
template <bool kFourthDegree>
CUTE_DEVICE float exp2_polynomial(float x) {
  constexpr float kRound = 12582912.f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  x = at_least(x, -126.f);
  float const shifted = x + kRound;
  float const r = x - (shifted - kRound);
  float y;
  if constexpr (kFourthDegree) {
    y = fmaf(fmaf(fmaf(fmaf(0.009570102f, r, 0.055917862f), r, 0.240247448f), r, 0.693121815f), r, 0.999999261f);
  } else {
    y = fmaf(fmaf(fmaf(0.055171669f, r, 0.242611133f), r, 0.693260986f), r, 0.999928073f);
  }
  return __int_as_float(__float_as_int(y) + (__float_as_int(shifted) << 23));
}

// The special function unit takes 8 cycles for what the other units take 1, so a part of the columns goes there.
constexpr int kPolynomialColumns = 2;  // of every 8

template <class Element>
CUTE_DEVICE float exp2_of_column(int column, float x) {
  if (column % 8 < kPolynomialColumns) return exp2_polynomial<std::is_same_v<Element, cutlass::half_t>>(x);
  return exp2_approximate(x);
}

// The accumulator ((2, 2, N/8), 1, 1) of a wgmma as (rows of this thread, its columns).
template <class Tensor>
CUTE_DEVICE auto as_rows(Tensor& accumulator) {
  auto layout = accumulator.layout();
  return make_tensor(accumulator.data(),
                     make_layout(get<0, 1>(layout), make_layout(get<0, 0>(layout), get<0, 2>(layout))));
}

// The layout of an accumulator as the register operand A of the next wgmma: ((2, 2, 2), 1, N/16).
template <class Layout>
CUTE_DEVICE auto as_operand_a(Layout layout) {
  auto columns = logical_divide(get<0, 2>(layout), Tile<_2>{});
  return make_layout(make_layout(get<0, 0>(layout), get<0, 1>(layout), get<0, 0>(columns)), get<1>(layout),
                     get<0, 1>(columns));
}

CUTE_DEVICE float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
}

CUTE_DEVICE float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 2);
  return x + __shfl_xor_sync(0xffffffffu, x, 1);
}

// Per row of this thread: the score that exponentials are relative to, and this thread's share of their sum.
struct SoftmaxState {
  float reference[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0.f, 0.f};
};

// Turns scores into exponentials relative to a running reference; correction: the factor by which what was
// accumulated before must shrink. scale_log2: the softmax scale times log2(e).
//
// The reference follows the row's maximum only once that is kSlack above it (in powers of two): smaller steps cost
// nothing in accuracy, for floats scale freely, and a correction of 1 need not be applied.
constexpr float kSlack = 8.f;

template <class Element, class Tensor>
CUTE_DEVICE void update_softmax(SoftmaxState& state, Tensor& scores, float (&correction)[2], float scale_log2) {
  auto rows = as_rows(scores);
  constexpr int kColumns = decltype(size<1>(rows))::value;
  float offset[2];
  CUTE_UNROLL
  for (int r = 0; r < 2; ++r) {
    // Two chains, for the latency of one would show.
    float largest = fmaxf(rows(r, 0), rows(r, 1)), other = fmaxf(rows(r, 2), rows(r, 3));
    CUTE_UNROLL
    for (int c = 4; c < kColumns; c += 2) {
      largest = fmaxf(largest, rows(r, c));
      other = fmaxf(other, rows(r, c + 1));
    }
    largest = quad_max(fmaxf(largest, other));
    float const before = state.reference[r];
    float const reference = (largest - before) * scale_log2 > kSlack ? largest : before;
    // A row that has seen no key keeps -inf; zero in its place avoids inf - inf.
    offset[r] = reference == -INFINITY ? 0.f : reference * scale_log2;
    correction[r] = exp2_approximate(before * scale_log2 - offset[r]);
    state.reference[r] = reference;
  }
  CUTE_UNROLL
  for (int r = 0; r < 2; ++r) {
    float sum = state.sum[r] * correction[r], other = 0.f;
    CUTE_UNROLL
    for (int c = 0; c < kColumns; c += 2) {
      rows(r, c) = exp2_of_column<Element>(c, fmaf(rows(r, c), scale_log2, -offset[r]));
      rows(r, c + 1) = exp2_of_column<Element>(c + 1, fmaf(rows(r, c + 1), scale_log2, -offset[r]));
      sum += rows(r, c);
      other += rows(r, c + 1);
    }
    state.sum[r] = sum + other;
  }
}

template <class Tensor>
CUTE_DEVICE void rescale(Tensor& accumulator, float const (&correction)[2]) {
  auto rows = as_rows(accumulator);
  CUTE_UNROLL
  for (int r = 0; r < 2; ++r) {
    CUTE_UNROLL
    for (int c = 0; c < size<1>(rows); ++c) rows(r, c) *= correction[r];
  }
}

}  // namespace sampleattn::sm90
