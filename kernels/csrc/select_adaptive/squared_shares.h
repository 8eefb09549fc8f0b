// Scores of query rows against the representatives of key blocks, as shares of a row's attention; included once per
// instruction set.
#pragma once

#include "shared/cpu/isa.h"
#include "shared/cpu/microkernel.h"
#include "shared/cpu/normals.h"
#include "shared/landmarks.h"

namespace sampleattn::cpu {
namespace {

// What the members of one query row's columns add to its scores.
struct MemberTerms {
  int64_t members, columns, end;
  const float* log2_weights;
  const float* half_spreads;
  float query_norm;  // squared; half_spreads are its factors

  // What a representative's spread adds to its score, at most what the keys that it stands for can.
  Vec boost_at(int64_t at) const { return boost(load(half_spreads + at), query_norm, load(log2_weights + at)); }
  // By what the squares of these keys' exponentials sum to less than the square of their sum; a logarithm.
  Vec unequal(int64_t at) const {
    return min(boost_at(at) * 2.0f - max(load(log2_weights + at), splat(0.0f)), splat(0.0f));
  }
};

// scores: member m's at scores + m * stride; the largest of a group of landmarks takes the place of its first. All passes
// run along the columns, so no sum crosses lanes until the end.
inline void row_squares(float* scores, int64_t stride, const MemberTerms& terms, const ExactSums& exact, int r,
                        float* squares) {
  const int64_t entries = terms.members < 1 + kLandmarkGroups ? terms.members : 1 + kLandmarkGroups;
  Vec highest = splat(-kInf);
  for (int64_t m = 0; m < entries; ++m) {
    float* row = scores + m * stride;
    for (int64_t j = 0; j < terms.end; j += kLanes) {
      const int64_t at = m * terms.columns + j;
      Vec weighted = load(row + j) + load(terms.log2_weights + at) + terms.boost_at(at);
      for (int64_t other = m + kLandmarkGroups; m > 0 && other < terms.members; other += kLandmarkGroups) {
        const Vec weight = load(terms.log2_weights + other * terms.columns + j);
        weighted = max(weighted, load(scores + other * stride + j) + weight);
      }
      const Vec score = before(j, terms.end) ? weighted : splat(-kInf);
      store(row + j, score);
      highest = max(score, highest);
    }
  }
  const float reference = highest_score(exact, r, reduce_max(highest));
  if (reference == -kInf) return;  // the row sees no key
  Vec sum{};
  for (int64_t j = 0; j < terms.end; j += kLanes) {
    Vec square{};
    for (int64_t m = 0; m < entries; ++m) {
      const Vec mass = exp2_nonpositive(load(scores + m * stride + j) - splat(reference));
      square += mass * mass * exp2_nonpositive(terms.unequal(m * terms.columns + j));
      sum += mass;
    }
    store(scores + j, square);
  }
  const float factor = 1.0f / (exact_total(exact, r, reference) + reduce_sum(sum));
  for (int64_t j = 0; j < terms.end; j += kLanes) {
    store(squares + j, load(scores + j) * (factor * factor) + load(squares + j));
  }
}

void add_squared_shares(const StripRows& strip, const float* packed, int64_t members, int64_t columns, int64_t end,
                        const float* log2_weights, const float* half_spreads, const ExactSums& exact, float* scores,
                        float* squares) {
  const int64_t stride = strip.padded_rows * columns;
  for (int64_t m = 0; m < members; ++m) {
    product(strip.padded_rows, strip.query, strip.head_dim, strip.head_dim, 0, strip.head_dim,
            packed + m * strip.head_dim * columns, columns, 0, end, scores + m * stride, columns, nullptr);
  }
  for (int r = 0; r < strip.rows; ++r) {
    row_squares(scores + r * columns, stride,
                {members, columns, end, log2_weights, half_spreads, squared_norm(strip, r)}, exact, r, squares);
  }
}

}  // namespace
}  // namespace sampleattn::cpu
