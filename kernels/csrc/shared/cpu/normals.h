// What representatives stand for in a row's attention, beside the keys that are scored exactly; included once per
// instruction set.
#pragma once

#include "shared/cpu/isa.h"
#include "shared/cpu/simd.h"

namespace sampleattn::cpu {
namespace {

// What the spread of keys adds to the score of their mean, at most what so many keys can. half_spread: times the squared
// norm of the query it is in units of log2.
inline Vec boost(Vec half_spread, float query_norm, Vec log2_number) {
  return min(half_spread * query_norm, max(log2_number, splat(0.0f)));
}

inline float squared_norm(const StripRows& strip, int r) {
  const float* query = strip.query + r * strip.head_dim;
  float norm = 0.0f;
  for (int64_t d = 0; d < strip.head_dim; ++d) norm += query[d] * query[d];
  return norm;
}

// The lanes of a vector of columns from j on that are before `end`.
inline IntVec before(int64_t j, int64_t end) {
  return iota() + static_cast<int32_t>(j) < splat(static_cast<int32_t>(end));
}

// The largest exact score of a row, or `highest` of the others.
inline float highest_score(const ExactSums& exact, int r, float highest) {
  const float* maximum = exact.maximum + r * exact.count;
  for (int64_t e = 0; e < exact.count; ++e) highest = maximum[e] > highest ? maximum[e] : highest;
  return highest;
}

// What a row gives the exact keys and the sink, times 2^-reference. Of an infinite sink, shares are the 0 that they are
// nearly.
inline float exact_total(const ExactSums& exact, int r, float reference) {
  const float *maximum = exact.maximum + r * exact.count, *sum = exact.sum + r * exact.count;
  float total = __builtin_exp2f(exact.sink - reference);
  for (int64_t e = 0; e < exact.count; ++e) total += sum[e] * exp2_nonpositive(splat(maximum[e] - reference))[0];
  return total;
}

}  // namespace
}  // namespace sampleattn::cpu
