// The inner kernels, compiled once per instruction set and chosen at run time.
#pragma once

#include "shared/cpu/types.h"

namespace sampleattn::cpu {

constexpr float kLog2e = 1.442695040888963f;
constexpr int kStripRows = 32;  // rows of a query block that are carried through scores, softmax and values at once

// Running softmax of the rows of a query block; scores are in units of log2.
struct RowState {
  float* out;      // [rows, v_columns], not yet divided by sum
  float* maximum;  // [rows]
  float* sum;      // [rows]
};

// What the keys that a query block leaves out give its rows, as sampled rows have it (block_rest_attention).
struct LeftOut {
  const float* value = nullptr;  // [value_head_dim]; nullptr: none
  float share = 0.0f, level = 0.0f;
  float part = 0.0f;  // of it that rows get
};

// Rows of a query block, packed: padded_rows x head_dim, times the scale and log2(e).
struct StripRows {
  int rows, padded_rows;
  const float* query;
  int64_t head_dim;
};

// What a strip's rows give the keys that are scored exactly: maxima and sums of `count` blocks, [rows, count]; and a
// logit that has its share of it, in units of log2.
struct ExactSums {
  const float* maximum;
  const float* sum;
  int64_t count;
  float sink;
};

// What stands for other keys in a row's total: a head_dim x columns matrix, of which the columns before `end` count, and
// their terms, in units of log2.
struct StandIns {
  const float* packed;
  int64_t columns, end;
  const float* log2_weights;
  const float* half_spreads;
};

// Of a mean variance of keys' numbers: a query's squared norm times this, both scaled by log2(e), is in units of log2.
constexpr float half_spread(float spread) { return spread * 0.5f / kLog2e; }

struct Isa {
  const char* name;
  int64_t lanes;  // packed matrices have a multiple of this many columns
  int64_t panel;  // the most columns that are computed at a time
  int64_t row_multiple;  // query rows come in multiples of this

  // rows x head_dim to fp32 row-major, times `factor`; rows up to padded_rows are zero.
  void (*pack_query)(float* packed, const View& query, int64_t b, int64_t h, const int64_t* rows, int64_t n_rows,
                     int64_t padded_rows, int64_t head_dim, float factor);
  // Keys of a block, transposed: head_dim x block_k. Padding keys (segment < 0) and those past the end become 0.
  void (*pack_keys)(float* packed, const View& key, int64_t b, int64_t h, int64_t first, int64_t n_keys,
                    int64_t block_k, int64_t head_dim, const int32_t* segment);
  // Values of a block: block_k x round_up(value_head_dim, lanes). Returns whether all of them are finite.
  bool (*pack_values)(float* packed, const View& value, int64_t b, int64_t h, int64_t first, int64_t n_keys,
                      int64_t block_k, int64_t value_head_dim, const int32_t* segment);
  // Adds a key block to the state of one strip; `masked` nullptr means that every entry is visible.
  void (*attend)(const RowState& state, int rows, const float* query, int64_t head_dim, const float* keys,
                 const float* values, bool finite_values, int64_t block_k, int64_t v_columns,
                 const BlockMaskedRows* masked, float* scores);
  // out = state.out / (state.sum and what `sink` adds, a logit in units of log2), lse = natural log of the sum alone;
  // rows without keys give 0 and -inf. `left_out` has a part in out, not in lse.
  void (*finish)(const RowState& state, int rows, int64_t value_head_dim, int64_t v_columns, float sink,
                 const LeftOut& left_out, const View& out, int64_t b, int64_t h, int64_t first_row, float* lse);
  // Maximum, sum of exp2(score - maximum) and sum of its squares of each row of a strip over one key block; squares may
  // be nullptr.
  void (*block_sums)(int rows, const float* query, int64_t head_dim, const float* keys, int64_t block_k,
                     const BlockMaskedRows* masked, float* scores, float* maximum, float* sum, float* squares,
                     int64_t row_stride);
  // Turns the maxima and sums of a row's n blocks into shares of the row's softmax, in place of the sums, and the sums
  // of squares, unless nullptr, into those of the keys' shares. Returns the logarithm of the row's sum, in units of
  // log2: -inf if the row has no visible key.
  float (*normalise)(const float* maximum, float* sum, float* squares, int64_t n);
  // Adds to squares[j], for every column j < end, the squared share that column j's members have of the attention of
  // each row of a strip. packed: a head_dim x columns matrix for each member; log2_weights and half_spreads (in units of
  // log2): [members, columns]. scores is scratch: members x padded_rows x columns.
  void (*add_squared_shares)(const StripRows& strip, const float* packed, int64_t members, int64_t columns, int64_t end,
                             const float* log2_weights, const float* half_spreads, const ExactSums& exact,
                             float* scores, float* squares);
  // Raises peaks[j], for every column j < end, to the largest share that a row of a strip gives to one of column j's
  // landmarks; a logarithm, in units of log2. packed: a head_dim x columns matrix for each landmark; exist: [landmarks,
  // columns], 0 or -inf. Of a row's total, exact and others are all. scratch: padded_rows x the larger of panel and
  // others.columns.
  void (*raise_peaks)(const StripRows& strip, const float* packed, int64_t landmarks, int64_t columns, int64_t end,
                      const float* exist, const StandIns& others, const ExactSums& exact, float* scratch, float* peaks);
};

// The best instruction set of this machine, or the one that ATEN_CPU_CAPABILITY names.
const Isa& select_isa();

const Isa& isa_baseline();
#if defined(__x86_64__)
const Isa& isa_avx2();
const Isa& isa_avx512();
#endif

}  // namespace sampleattn::cpu
