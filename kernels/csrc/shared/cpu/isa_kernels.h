// Definitions of the inner kernels of isa.h; included once per instruction set.
#pragma once

#include "select_adaptive/squared_shares.h"
#include "select_peaks/largest_shares.h"
#include "shared/cpu/half.h"
#include "shared/cpu/isa.h"
#include "shared/cpu/microkernel.h"

namespace sampleattn::cpu {
namespace {

inline void read_row(float* to, const void* from, Dtype dtype, int64_t n) {
  if (dtype == Dtype::f32) {
    __builtin_memcpy(to, from, n * sizeof(float));
  } else if (dtype == Dtype::bf16) {
    const uint16_t* half = static_cast<const uint16_t*>(from);
    for (int64_t i = 0; i < n; ++i) to[i] = bf16_to_float(half[i]);
  } else {
    const uint16_t* half = static_cast<const uint16_t*>(from);
    for (int64_t i = 0; i < n; ++i) to[i] = f16_to_float(half[i]);
  }
}

inline void write_row(void* to, const float* from, Dtype dtype, int64_t n) {
  if (dtype == Dtype::f32) {
    __builtin_memcpy(to, from, n * sizeof(float));
  } else if (dtype == Dtype::bf16) {
    for (int64_t i = 0; i < n; ++i) static_cast<uint16_t*>(to)[i] = float_to_bf16(from[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) static_cast<uint16_t*>(to)[i] = float_to_f16(from[i]);
  }
}

void pack_query(float* packed, const View& query, int64_t b, int64_t h, const int64_t* rows, int64_t n_rows,
                int64_t padded_rows, int64_t head_dim, float factor) {
  for (int64_t r = 0; r < n_rows; ++r) {
    float* to = packed + r * head_dim;
    read_row(to, query.row(b, h, rows[r]), query.dtype, head_dim);
    for (int64_t d = 0; d < head_dim; ++d) to[d] *= factor;
  }
  __builtin_memset(packed + n_rows * head_dim, 0, (padded_rows - n_rows) * head_dim * sizeof(float));
}

inline int64_t panel_width(int64_t columns, int64_t column) {
  return columns - column < kPanel ? columns - column : kPanel;
}

void pack_keys(float* packed, const View& key, int64_t b, int64_t h, int64_t first, int64_t n_keys, int64_t block_k,
               int64_t head_dim, const int32_t* segment) {
  float rows[kLanes * 64];  // a slab of kLanes keys x 64 dimensions, read in order and written transposed
  for (int64_t column = 0; column < block_k; column += kPanel) {
    const int64_t width = panel_width(block_k, column);
    float* panel = packed + column * head_dim;
    for (int64_t at = 0; at < width; at += kLanes) {
      for (int64_t d0 = 0; d0 < head_dim; d0 += 64) {
        const int64_t dims = head_dim - d0 < 64 ? head_dim - d0 : 64;
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          const int64_t j = column + at + lane;
          if (j >= n_keys || (segment && segment[first + j] < 0)) {
            __builtin_memset(rows + lane * 64, 0, dims * sizeof(float));
          } else {
            const char* from = key.row(b, h, first + j) + d0 * element_size(key.dtype);
            read_row(rows + lane * 64, from, key.dtype, dims);
          }
        }
        for (int64_t d = 0; d < dims; ++d) {
          float* to = panel + (d0 + d) * width + at;
          for (int64_t lane = 0; lane < kLanes; ++lane) to[lane] = rows[lane * 64 + d];
        }
      }
    }
  }
}

bool pack_values(float* packed, const View& value, int64_t b, int64_t h, int64_t first, int64_t n_keys, int64_t block_k,
                 int64_t value_head_dim, const int32_t* segment) {
  const int64_t columns = round_up(value_head_dim, kLanes);
  uint32_t not_finite = 0;
  for (int64_t j = 0; j < block_k; ++j) {
    const bool absent = j >= n_keys || (segment && segment[first + j] < 0);
    for (int64_t column = 0; column < columns; column += kPanel) {
      const int64_t width = panel_width(columns, column);
      float* to = packed + column * block_k + j * width;
      const int64_t dims = absent ? 0 : (value_head_dim - column < width ? value_head_dim - column : width);
      if (dims > 0) {
        read_row(to, value.row(b, h, first + j) + column * element_size(value.dtype), value.dtype, dims);
      }
      for (int64_t d = dims; d < width; ++d) to[d] = 0.0f;
      for (int64_t d = 0; d < width; ++d) not_finite |= (float_to_bits(to[d]) & 0x7f800000) == 0x7f800000;
    }
  }
  return not_finite == 0;
}

struct Range {
  int64_t begin, end;  // columns of a strip that hold a visible entry; the rest is neither computed nor read
};

inline Range visible_range(const BlockMaskedRows& masked, int rows, int64_t block_k) {
  Range range{block_k, 0};
  for (int r = 0; r < rows; ++r) {
    if (masked.low[r] >= masked.high[r]) continue;
    if (masked.low[r] < range.begin) range.begin = masked.low[r];
    if (masked.high[r] > range.end) range.end = masked.high[r];
  }
  return range;
}

// Scores of masked entries become -inf.
inline void apply_mask(float* scores, int64_t block_k, int rows, Range range, const BlockMaskedRows& masked) {
  for (int r = 0; r < rows; ++r) {
    float* row = scores + r * block_k;
    const IntVec low = splat(masked.low[r]), high = splat(masked.high[r]);
    for (int64_t j = range.begin / kLanes * kLanes; j < range.end; j += kLanes) {
      const IntVec key = iota() + static_cast<int32_t>(j);
      IntVec visible = (key >= low) & (key < high);
      if (masked.row_segment) visible &= load(masked.key_segment + j) == splat(masked.row_segment[r]);
      store(row + j, visible ? load(row + j) : splat(-kInf));
    }
  }
}

inline float row_maximum(const float* row, int64_t begin, int64_t end) {
  Vec m = splat(-kInf);
  for (int64_t j = begin; j < end; j += kLanes) m = max(load(row + j), m);
  return reduce_max(m);
}

// Rows of a block with values that are not finite: 0 * NaN must not reach rows that do not see the value.
inline void add_visible_values(float* out, int64_t v_columns, const float* weights, int64_t block_k,
                               const float* values, int rows, Range range, const float* correction) {
  for (int r = 0; r < rows; ++r) {
    for (int64_t column = 0; column < v_columns; column += kPanel) {
      const int64_t width = panel_width(v_columns, column);
      float* to = out + r * v_columns + column;
      for (int64_t d = 0; d < width; ++d) to[d] *= correction[r];
      for (int64_t j = range.begin; j < range.end; ++j) {
        const float weight = weights[r * block_k + j];
        if (weight == 0.0f) continue;
        const float* from = values + column * block_k + j * width;
        for (int64_t d = 0; d < width; ++d) to[d] += weight * from[d];
      }
    }
  }
}

void attend(const RowState& state, int rows, const float* query, int64_t head_dim, const float* keys,
            const float* values, bool finite_values, int64_t block_k, int64_t v_columns, const BlockMaskedRows* masked,
            float* scores) {
  Range range{0, block_k};
  if (masked) {
    range = visible_range(*masked, rows, block_k);
    if (range.begin >= range.end) return;
  }
  product(rows, query, head_dim, head_dim, 0, head_dim, keys, block_k, range.begin / kPanel * kPanel, range.end, scores,
          block_k, nullptr);
  if (masked) apply_mask(scores, block_k, rows, range, *masked);
  const int64_t begin = range.begin / kLanes * kLanes;
  float maximum[kStripRows], correction[kStripRows];
  for (int r = 0; r < kStripRows; ++r) maximum[r] = -kInf;
  for (int r = 0; r < rows; ++r) maximum[r] = row_maximum(scores + r * block_k, begin, range.end);
  for (int r = 0; r < kStripRows; r += kLanes) {
    const Vec before = load(state.maximum + r);
    const Vec now = max(load(maximum + r), before);
    // A row that has seen no key yet keeps -inf; exp2(-inf - 0) is the 0 that it needs.
    const Vec reference = now == splat(-kInf) ? Vec{} : now;
    const Vec factor = exp2_nonpositive(before - reference);
    store(state.maximum + r, now);
    store(maximum + r, reference);
    store(correction + r, factor);
    store(state.sum + r, load(state.sum + r) * factor);
  }
  for (int r = 0; r < rows; ++r) {
    float* row = scores + r * block_k;
    const Vec reference = splat(maximum[r]);
    Vec sum{};
    for (int64_t j = begin; j < range.end; j += kLanes) {
      const Vec weight = exp2_nonpositive(load(row + j) - reference);
      sum += weight;
      store(row + j, weight);
    }
    state.sum[r] += reduce_sum(sum);
  }
  if (masked && !finite_values) {
    add_visible_values(state.out, v_columns, scores, block_k, values, rows, range, correction);
  } else {
    product(rows, scores, block_k, block_k, range.begin, range.end, values, v_columns, 0, v_columns, state.out,
            v_columns, correction);
  }
}

void finish(const RowState& state, int rows, int64_t value_head_dim, int64_t v_columns, float sink,
            const LeftOut& left_out, const View& out, int64_t b, int64_t h, int64_t first_row, float* lse) {
  for (int r = 0; r < rows; ++r) {
    float* row = state.out + r * v_columns;
    const float sum = state.sum[r];
    lse[r] = sum == 0.0f ? -kInf : state.maximum[r] * 0.693147180559945f + __builtin_logf(sum);
    float ratio = 0.0f, stays = 1.0f;
    if (left_out.value && sum != 0.0f) {
      const float more = __builtin_expf(left_out.level - lse[r]);
      ratio = left_out.part * (more > 1.0f ? 1.0f : more);
      stays = 1.0f - ratio * left_out.share;
    }
    // The sink has its share of all: of the sum, which makes `stays` of it, and of what is left out.
    const float factor = sum == 0.0f ? 0.0f : 1.0f / (sum + stays * __builtin_exp2f(sink - state.maximum[r]));
    for (int64_t d = 0; d < value_head_dim; ++d) row[d] *= stays * factor;
    if (ratio != 0.0f) {
      for (int64_t d = 0; d < value_head_dim; ++d) row[d] += ratio * sum * factor * left_out.value[d];
    }
    write_row(out.row(b, h, first_row + r), row, out.dtype, value_head_dim);
  }
}

constexpr int kSumRows = 4;  // divides kRowMultiple

void block_sums(int rows, const float* query, int64_t head_dim, const float* keys, int64_t block_k,
                const BlockMaskedRows* masked, float* scores, float* maximum, float* sum, float* squares,
                int64_t row_stride) {
  Range range{0, block_k};
  if (masked) range = visible_range(*masked, rows, block_k);
  if (range.begin < range.end) {
    product(rows, query, head_dim, head_dim, 0, head_dim, keys, block_k, range.begin / kPanel * kPanel, range.end,
            scores, block_k, nullptr);
    if (masked) apply_mask(scores, block_k, rows, range, *masked);
  }
  // Rows in groups: the reductions across lanes of one, 40 % of this loop's time otherwise, overlap with another's work.
  const int64_t begin = range.begin / kLanes * kLanes;
  for (int first = 0; first < rows; first += kSumRows) {
    const float* row = scores + first * block_k;
    Vec reference[kSumRows], total[kSumRows]{}, squared[kSumRows]{};
    for (int r = 0; r < kSumRows; ++r) {
      const float m = row_maximum(row + r * block_k, begin, range.end);
      maximum[(first + r) * row_stride] = m;
      reference[r] = splat(m == -kInf ? 0.0f : m);
    }
    for (int64_t j = begin; j < range.end; j += kLanes) {
      for (int r = 0; r < kSumRows; ++r) {
        const Vec weight = exp2_nonpositive(load(row + r * block_k + j) - reference[r]);
        total[r] += weight;
        squared[r] += weight * weight;
      }
    }
    for (int r = 0; r < kSumRows; ++r) {
      sum[(first + r) * row_stride] = reduce_sum(total[r]);
      if (squares) squares[(first + r) * row_stride] = reduce_sum(squared[r]);
    }
  }
}

float normalise(const float* maximum, float* sum, float* squares, int64_t n) {
  float m = -kInf;
  for (int64_t j = 0; j < n; ++j) m = maximum[j] > m ? maximum[j] : m;
  if (m == -kInf) return m;
  float total = 0.0f;
  int64_t j = 0;
  for (; j + kLanes <= n; j += kLanes) {
    const Vec weight = exp2_nonpositive(load(maximum + j) - m);
    const Vec share = load(sum + j) * weight;
    store(sum + j, share);
    if (squares) store(squares + j, load(squares + j) * weight * weight);
    total += reduce_sum(share);
  }
  for (; j < n; ++j) {
    const float weight = exp2_nonpositive(splat(maximum[j] - m))[0];
    sum[j] *= weight;
    total += sum[j];
    if (squares) squares[j] *= weight * weight;
  }
  const float factor = 1.0f / total;
  for (j = 0; j < n; ++j) sum[j] *= factor;
  for (j = 0; squares && j < n; ++j) squares[j] *= factor * factor;
  return m + __builtin_log2f(total);
}

constexpr Isa make_isa(const char* name) {
  return Isa{name,   kLanes, kPanel,     kRowMultiple, pack_query,         pack_keys,  pack_values,
             attend, finish, block_sums, normalise,    add_squared_shares, raise_peaks};
}

}  // namespace
}  // namespace sampleattn::cpu
