// Keys that stand for a key block: its landmarks, and the mean of the others.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "shared/cpu/half.h"
#include "shared/cpu/isa.h"
#include "shared/cpu/types.h"
#include "shared/cpu/work.h"
#include "shared/landmarks.h"

namespace sampleattn::cpu {

struct RepresentativeArguments {
  Sizes sizes;  // of the queries nothing is read
  View key;
  Segments key_segment;
  int64_t landmarks;
};

namespace detail {

inline void write_floats(char* to, const double* from, Dtype dtype, int64_t n) {
  for (int64_t d = 0; d < n; ++d) {
    const float value = static_cast<float>(from[d]);
    if (dtype == Dtype::f32) {
      std::memcpy(to + 4 * d, &value, 4);
    } else {
      const uint16_t half = dtype == Dtype::bf16 ? float_to_bf16(value) : float_to_f16(value);
      std::memcpy(to + 2 * d, &half, 2);
    }
  }
}

// The first key of a batch entry that may be seen; kv_len for none.
inline int64_t first_valid_key(const RepresentativeArguments& args, int64_t b) {
  const int32_t* ids = args.key_segment.row(b);
  return ids ? std::find(ids, ids + args.sizes.kv_len, 0) - ids : 0;
}

// Scratch of one thread, and the work on one key block.
class RepresentativeWorker {
 public:
  // first_keys: of every batch entry.
  RepresentativeWorker(const RepresentativeArguments& args, const Isa& isa, const std::vector<int64_t>& first_keys)
      : args_(args), isa_(isa), first_keys_(first_keys), dim_(args.sizes.head_dim), keys_(args.sizes.block_k * dim_),
        mean_(dim_) {}

  // Members of a block lie member_bytes (of the representatives) or n_key_blocks (of the floats) apart.
  void run(int64_t b, int64_t h, int64_t block, char* representatives, int64_t member_bytes, float* log_weights,
           float* spreads) {
    read(b, h, block);
    const int64_t n = static_cast<int64_t>(rows_.size()), stride = args_.sizes.key_blocks();
    const int64_t marks = std::min(args_.landmarks, n), row_bytes = dim_ * element_size(args_.key.dtype);
    choose(marks, n > 0 && rows_[0] == first_keys_[b]);
    const double spread = mean_of(order_.begin() + marks, order_.end());
    write_floats(representatives, mean_.data(), args_.key.dtype, dim_);
    log_weights[0] = static_cast<float>(std::log(static_cast<double>(n - marks)));  // -inf for none
    spreads[0] = static_cast<float>(spread);
    for (int64_t m = 1; m <= args_.landmarks; ++m) {
      char* to = representatives + m * member_bytes;
      if (m <= marks) {
        std::memcpy(to, args_.key.row(b, h, rows_[order_[m - 1]]), row_bytes);
      } else {
        std::memset(to, 0, row_bytes);
      }
      log_weights[m * stride] = m <= marks ? 0.0f : -__builtin_inff();
      spreads[m * stride] = 0.0f;
    }
  }

 private:
  // Puts the landmarks first in order_. norm_ is what is left of the keys' squared norms, column_[m] what is left of
  // their products with landmark m: a Cholesky factorisation with pivots that takes only a part away.
  void choose(int64_t marks, bool has_first_key) {
    const int64_t n = static_cast<int64_t>(rows_.size());
    order_.resize(n);
    std::iota(order_.begin(), order_.end(), int64_t{0});
    column_.resize(marks * n);
    for (int64_t m = 0; m < marks; ++m) {
      auto best = order_.begin() + m;
      if (m > 0 || !has_first_key) {
        best = std::max_element(order_.begin() + m, order_.end(), [&](int64_t x, int64_t y) {
          return norm_[x] < norm_[y] || (norm_[x] == norm_[y] && x > y);
        });
      }
      std::iter_swap(order_.begin() + m, best);
      const int64_t mark = order_[m];
      const double norm = std::max(norm_[mark], double{std::numeric_limits<float>::min()});
      norm_of_mark_.resize(m + 1);
      norm_of_mark_[m] = norm;
      double* column = column_.data() + m * n;
      const float* landmark = keys_.get() + mark * dim_;
      for (int64_t r = 0; r < n; ++r) column[r] = dot(keys_.get() + r * dim_, landmark);
      for (int64_t earlier = 0; earlier < m; ++earlier) {
        const double* other = column_.data() + earlier * n;
        const double factor = kLandmarkTaken * other[mark] / norm_of_mark_[earlier];
        for (int64_t r = 0; r < n; ++r) column[r] -= factor * other[r];
      }
      for (int64_t r = 0; r < n; ++r) {
        norm_[r] = std::max(norm_[r] - kLandmarkTaken * column[r] * column[r] / norm, 0.0);
      }
    }
  }

  double dot(const float* x, const float* y) const {
    double sum = 0.0;
    for (int64_t d = 0; d < dim_; ++d) sum += double{x[d]} * y[d];
    return sum;
  }

  // The block's valid keys as floats, and their squared norms.
  void read(int64_t b, int64_t h, int64_t block) {
    const int32_t* ids = args_.key_segment.row(b);
    const int64_t first = block * args_.sizes.block_k, end = std::min(first + args_.sizes.block_k, args_.sizes.kv_len);
    rows_.clear();
    for (int64_t k = first; k < end; ++k) {
      if (!ids || ids[k] == 0) rows_.push_back(k);
    }
    const int64_t n = static_cast<int64_t>(rows_.size());
    isa_.pack_query(keys_.get(), args_.key, b, h, rows_.data(), n, n, dim_, 1.0f);
    norm_.assign(n, 0.0);
    for (int64_t r = 0; r < n; ++r) norm_[r] = dot(keys_.get() + r * dim_, keys_.get() + r * dim_);
  }

  // Fills mean_ (0 for no key) and returns the mean squared distance from it, per dimension.
  template <class Iterator>
  double mean_of(Iterator begin, Iterator end) {
    const double n = static_cast<double>(std::max<int64_t>(end - begin, 1));
    mean_.assign(dim_, 0.0);
    for (auto at = begin; at != end; ++at) {
      for (int64_t d = 0; d < dim_; ++d) mean_[d] += keys_.get()[*at * dim_ + d];
    }
    for (int64_t d = 0; d < dim_; ++d) mean_[d] /= n;
    double sum = 0.0;
    for (auto at = begin; at != end; ++at) {
      for (int64_t d = 0; d < dim_; ++d) {
        const double distance = keys_.get()[*at * dim_ + d] - mean_[d];
        sum += distance * distance;
      }
    }
    return sum / (n * static_cast<double>(std::max<int64_t>(dim_, 1)));
  }

  const RepresentativeArguments& args_;
  const Isa& isa_;
  const std::vector<int64_t>& first_keys_;
  int64_t dim_;
  Buffer keys_;
  std::vector<double> mean_, norm_, norm_of_mark_, column_;
  std::vector<int64_t> rows_, order_;
};

}  // namespace detail

// representatives: [B, Hkv, members, n_key_blocks, D] in key's dtype, members = 1 + landmarks: the mean comes first,
// what a block lacks is 0. log_weights and spreads: [B, Hkv, members, n_key_blocks]. All contiguous.
template <class ParallelFor>
void block_representatives(const RepresentativeArguments& args, const Isa& isa, const ParallelFor& parallel_for,
                           int64_t threads, char* representatives, float* log_weights, float* spreads) {
  const Sizes& sizes = args.sizes;
  const int64_t n_blocks = sizes.key_blocks(), members = 1 + args.landmarks;
  const int64_t row_bytes = sizes.head_dim * element_size(args.key.dtype);
  std::vector<int64_t> first_keys;
  for (int64_t b = 0; b < sizes.batch; ++b) first_keys.push_back(detail::first_valid_key(args, b));
  for_each_item(parallel_for, threads, sizes.batch * sizes.kv_heads * n_blocks, [&] {
    return [&, worker = detail::RepresentativeWorker(args, isa, first_keys)](int64_t item) mutable {
      const int64_t block = item % n_blocks, pair = item / n_blocks;
      const int64_t at = pair * members * n_blocks + block;
      worker.run(pair / sizes.kv_heads, pair % sizes.kv_heads, block, representatives + at * row_bytes,
                 n_blocks * row_bytes, log_weights + at, spreads + at);
    };
  });
}

}  // namespace sampleattn::cpu
