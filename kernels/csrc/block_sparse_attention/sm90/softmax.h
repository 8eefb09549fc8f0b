// Online softmax over a wgmma's accumulator, of which each warp holds 16 rows, and each thread parts of two of them.
#pragma once

#include "shared/sm90/accumulator.h"

namespace sampleattn {

// Per row of this thread: what exponentials are relative to, in powers of two (-inf until the row has seen a key),
// and this thread's share of their sum.
struct SoftmaxState {
  float offset[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0.f, 0.f};
  bool unset = true;  // some row of this warp has no offset yet
};

// A row's offset follows its maximum only once that is this many powers of two above: smaller steps cost nothing in
// accuracy, for floats scale freely, and what was accumulated before need not be scaled.
constexpr float kSlack = 8.f;

// The largest value of each row of this thread's quad.
template <class Tensor>
CUTE_DEVICE void row_maximum(Tensor const& rows, float (&largest)[2]) {
  CUTE_UNROLL
  for (int r = 0; r < 2; ++r) {
    largest[r] = rows(r, 0);
    CUTE_UNROLL
    for (int c = 1; c < size<1>(rows); ++c) largest[r] = fmaxf(largest[r], rows(r, c));
    largest[r] = quad_max(largest[r]);
  }
}

// Turns scores into exponentials relative to the rows' offsets. Returns whether what was accumulated before must be
// scaled, by `correction`; the same for all of a warp. scale_log2: the softmax scale times log2(e).
template <class Tensor>
CUTE_DEVICE bool update_softmax(SoftmaxState& state, Tensor& scores, float (&correction)[2], float scale_log2) {
  auto rows = as_rows(scores);
  constexpr int kColumns = decltype(size<1>(rows))::value;
  bool corrected = false;
  float largest[2];
  if (state.unset) [[unlikely]] {
    row_maximum(rows, largest);
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      float const maximum = largest[r] * scale_log2, before = state.offset[r];
      if (!(maximum - before <= kSlack)) state.offset[r] = maximum;
      correction[r] = before == -INFINITY ? 1.f : exp2_approximate(before - state.offset[r]);
      state.sum[r] *= correction[r];
    }
    state.unset = __any_sync(0xffffffffu, state.offset[0] == -INFINITY || state.offset[1] == -INFINITY);
    corrected = true;
  }
  // Positive floats compare as integers do, negative ones are negative integers and NaN is above them all.
  int highest[4] = {INT_MIN, INT_MIN, INT_MIN, INT_MIN};
  CUTE_UNROLL
  for (int r = 0; r < 2; ++r) {
    // A row that has seen no key has scores of -inf; zero in the offset's place avoids inf - inf.
    float const offset = state.offset[r] == -INFINITY ? 0.f : state.offset[r];
    CUTE_UNROLL
    for (int c = 0; c < kColumns; c += 4) {
      CUTE_UNROLL
      for (int i = 0; i < 4; ++i) rows(r, c + i) = fmaf(rows(r, c + i), scale_log2, -offset);
      CUTE_UNROLL
      for (int i = 0; i < 4; i += 2) {
        int& chain = highest[r * 2 + i / 2];
        chain = max(chain, max(__float_as_int(rows(r, c + i)), __float_as_int(rows(r, c + i + 1))));
      }
    }
  }
  int const above = max(max(highest[0], highest[1]), max(highest[2], highest[3]));
  if (__any_sync(0xffffffffu, above > __float_as_int(kSlack))) [[unlikely]] {
    row_maximum(rows, largest);
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      float const step = largest[r] > kSlack ? largest[r] : 0.f;
      CUTE_UNROLL
      for (int c = 0; c < kColumns; ++c) rows(r, c) -= step;
      float const factor = exp2_approximate(-step);
      correction[r] = corrected ? correction[r] * factor : factor;
      state.offset[r] += step;
      state.sum[r] *= factor;
    }
    corrected = true;
  }
  CUTE_UNROLL
  for (int r = 0; r < 2; ++r) {
    float sum = state.sum[r], other = 0.f;
    CUTE_UNROLL
    for (int c = 0; c < kColumns; c += 2) {
      rows(r, c) = exp2_approximate(rows(r, c));
      rows(r, c + 1) = exp2_approximate(rows(r, c + 1));
      sum += rows(r, c);
      other += rows(r, c + 1);
    }
    state.sum[r] = sum + other;
  }
  return corrected;
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

}  // namespace sampleattn
