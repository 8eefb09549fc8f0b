// The mask predicate for strips of query rows and blocks of keys: causality, window, segments, ragged ends.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "shared/cpu/isa.h"
#include "shared/cpu/types.h"

namespace sampleattn::cpu {

struct SegmentRange {
  int32_t low, high;

  bool uniform() const { return low == high && low >= 0; }
  bool meets(const SegmentRange& other) const { return low <= other.high && high >= other.low && high >= 0; }
};

inline SegmentRange segment_range(const int32_t* ids, int64_t n) {
  const auto [low, high] = std::minmax_element(ids, ids + n);
  return {*low, *high};
}

// Segment ids of the keys, padded to whole blocks with -1, and their range per block.
class KeySegments {
 public:
  // used: whether any tensor of segments is given, of queries or of keys.
  KeySegments(const Segments& segments, const Sizes& sizes, bool used)
      : used_(used), rows_(segments.data && segments.batch_stride ? sizes.batch : 1), blocks_(sizes.key_blocks()),
        block_k_(sizes.block_k) {
    if (!used_) return;
    const int64_t kv_len = sizes.kv_len, block_k = block_k_;
    ids_.assign(rows_ * blocks_ * block_k, -1);
    for (int64_t b = 0; b < rows_; ++b) {
      int32_t* to = ids_.data() + b * blocks_ * block_k;
      if (const int32_t* from = segments.row(b)) {
        std::copy(from, from + kv_len, to);
      } else {
        std::fill(to, to + kv_len, 0);
      }
      for (int64_t j = 0; j < blocks_; ++j) ranges_.push_back(segment_range(to + j * block_k, block_k));
    }
  }

  bool used() const { return used_; }
  // Ids of all keys of a batch entry, or nullptr where segments play no role.
  const int32_t* row(int64_t b) const { return used_ ? ids_.data() + index(b) * blocks_ * block_k_ : nullptr; }
  SegmentRange range(int64_t b, int64_t block) const { return ranges_[index(b) * blocks_ + block]; }

 private:
  int64_t index(int64_t b) const { return rows_ == 1 ? 0 : b; }

  bool used_;
  int64_t rows_, blocks_, block_k_;
  std::vector<int32_t> ids_;
  std::vector<SegmentRange> ranges_;
};

enum class Visible { none, some, all };

// What the rows of a strip see, in absolute key indices; rows that pad the strip see nothing.
struct Strip {
  int64_t low[kStripRows], high[kStripRows];
  int32_t segment[kStripRows];
  SegmentRange segments{0, 0};
  int64_t n_rows = 0;
  int padded_rows = 0;

  // Rows as positions; `ids` per row or nullptr for all 0. Rows of a segment below 0 see nothing.
  template <class Position, class Id>
  void set(int64_t rows, int64_t row_multiple, int64_t kv_len, bool causal, int64_t window, const Position& position,
           const Id& id) {
    n_rows = rows;
    padded_rows = static_cast<int>(round_up(rows, row_multiple));
    for (int64_t r = 0; r < padded_rows; ++r) {
      const bool exists = r < rows;
      const int64_t p = exists ? position(r) : 0;
      segment[r] = exists ? id(r) : -1;
      const bool sees = segment[r] >= 0;
      low[r] = window > 0 ? std::max<int64_t>(p - window + 1, 0) : 0;
      high[r] = !sees ? 0 : causal ? std::min(p + 1, kv_len) : kv_len;
    }
    segments = segment_range(segment, rows);
  }

  Visible visible(int64_t first_key, int64_t block_k, const KeySegments& keys, int64_t b, int64_t block) const {
    const int64_t end = first_key + block_k;
    bool any = false, all = true;
    for (int64_t r = 0; r < n_rows; ++r) {
      any |= low[r] < end && high[r] > first_key && low[r] < high[r];
      all &= low[r] <= first_key && high[r] >= end;
    }
    if (!any) return Visible::none;
    if (!keys.used()) return all ? Visible::all : Visible::some;
    const SegmentRange range = keys.range(b, block);
    if (!segments.meets(range)) return Visible::none;
    return all && segments.uniform() && range.uniform() ? Visible::all : Visible::some;
  }
};

// Bounds of a strip's rows relative to one key block, in the form that the inner kernels take.
class StripMask {
 public:
  BlockMaskedRows relative(const Strip& strip, int64_t first_key, int64_t block_k, const int32_t* key_segment) {
    for (int r = 0; r < strip.padded_rows; ++r) {
      low_[r] = static_cast<int32_t>(std::clamp<int64_t>(strip.low[r] - first_key, 0, block_k));
      high_[r] = static_cast<int32_t>(std::clamp<int64_t>(strip.high[r] - first_key, 0, block_k));
    }
    if (!key_segment) return {low_, high_, nullptr, nullptr};
    return {low_, high_, strip.segment, key_segment + first_key};
  }

 private:
  int32_t low_[kStripRows], high_[kStripRows];
};

}  // namespace sampleattn::cpu
