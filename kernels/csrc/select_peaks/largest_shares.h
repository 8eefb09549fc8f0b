// Scores of query rows against the landmarks of key blocks, as logarithms of shares of a row's attention; included once
// per instruction set.
#pragma once

#include "shared/cpu/isa.h"
#include "shared/cpu/microkernel.h"
#include "shared/cpu/normals.h"

namespace sampleattn::cpu {
namespace {

// The logarithm of what row r of a strip gives to all keys and the sink, in units of log2; infinity where it sees no
// key, and has no share to give. scores: the row's against the stand-ins, which get lost.
inline float log2_total(float* scores, const StandIns& others, float query_norm, const ExactSums& exact, int r) {
  Vec highest = splat(-kInf);
  for (int64_t j = 0; j < others.end; j += kLanes) {
    const Vec weighted = load(scores + j) + load(others.log2_weights + j) +
                         boost(load(others.half_spreads + j), query_norm, load(others.log2_weights + j));
    const Vec score = before(j, others.end) ? weighted : splat(-kInf);
    store(scores + j, score);
    highest = max(score, highest);
  }
  const float reference = highest_score(exact, r, reduce_max(highest));
  if (reference == -kInf) return kInf;
  Vec sum{};
  for (int64_t j = 0; j < others.end; j += kLanes) sum += exp2_nonpositive(load(scores + j) - splat(reference));
  return reference + __builtin_log2f(exact_total(exact, r, reference) + reduce_sum(sum));
}

void raise_peaks(const StripRows& strip, const float* packed, int64_t landmarks, int64_t columns, int64_t end,
                 const float* exist, const StandIns& others, const ExactSums& exact, float* scratch, float* peaks) {
  product(strip.padded_rows, strip.query, strip.head_dim, strip.head_dim, 0, strip.head_dim, others.packed,
          others.columns, 0, others.end, scratch, others.columns, nullptr);
  float totals[kStripRows];
  for (int r = 0; r < strip.rows; ++r) {
    totals[r] = log2_total(scratch + r * others.columns, others, squared_norm(strip, r), exact, r);
  }
  for (int64_t column = 0; column < end; column += kPanel) {
    const int64_t width = columns - column < kPanel ? columns - column : kPanel;
    const int64_t used = end - column < width ? round_up(end - column, kLanes) : width;
    for (int64_t m = 0; m < landmarks; ++m) {
      panel(strip.padded_rows, strip.query, strip.head_dim, strip.head_dim,
            packed + (m * columns + column) * strip.head_dim, width, used, scratch, kPanel, nullptr);
      for (int64_t j = 0; j < used; j += kLanes) {
        Vec largest = splat(-kInf);  // the other operand may be no number
        for (int r = 0; r < strip.rows; ++r) largest = max(load(scratch + r * kPanel + j) - splat(totals[r]), largest);
        float* peak = peaks + column + j;
        store(peak, max(largest + load(exist + m * columns + column + j), load(peak)));
      }
    }
  }
}

}  // namespace
}  // namespace sampleattn::cpu
