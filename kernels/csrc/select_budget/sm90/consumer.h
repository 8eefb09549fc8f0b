// A consumer warp group: 64 sampled rows, whose exact scores with one key block after another become two numbers a row:
// the logarithms of the sum of its exponentials and of their 2-norm.
#pragma once

#include "select_budget/sm90/config.h"
#include "shared/sm90/accumulator.h"
#include "shared/sm90/products.h"

namespace sampleattn::sm90::budget {

// A sum above this and the row gets a new offset: its square must be a float.
constexpr float kLargestSum = 0x1p46f;

template <class C>
struct Consumer {
  using Scores = decltype(partition_fragment_C(typename C::Mma{}, Shape<_64, Int<kBlock>>{}));

  Arguments const& args;
  SharedStorage<C>& shared;
  Item const& item;
  int const consumer;

  Stage<C::kStages> key_stage;
  // Of this thread's rows, one and the one eight further down.
  int position[2];
  float offset[2] = {-INFINITY, -INFINITY};  // what the exponents are less, in powers of two
  float sum[2], squares[2];

  CUTE_DEVICE static int lane() { return threadIdx.x % 32; }
  CUTE_DEVICE static int column_lane() { return threadIdx.x % 4; }
  CUTE_DEVICE static int row_of_group(int r) { return threadIdx.x % 128 / 32 * 16 + lane() / 4 + 8 * r; }

  CUTE_DEVICE void run() {
    Strip const strip = strip_of(args, item.kv_head, item.first + consumer);
    load_queries(strip);
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      int const row = strip.exists ? sampled_row(args, strip.of * kStripRows + row_of_group(r)) : -1;
      position[r] = row < 0 ? INT_MIN : args.position(row);
    }
    int64_t const head = int64_t(item.batch) * args.q_heads + strip.head;
    float* const logs = args.logs + (head * args.strips() + strip.of) * args.n() * (2 * kStripRows) +
                        row_of_group(column_lane() / 2) * 2 + column_lane() % 2;
    Scores scores = partition_fragment_C(typename C::Mma{}, Shape<_64, Int<kBlock>>{});
    int const steps = item.end - item.begin;
    for (int step = 0; step < steps; ++step) {
      int const block = block_of_step(item, step);
      score(scores);
      auto rows = as_rows(scores);
      if (block >= item.clear) hide(rows, block);
      if (step == 0 || block >= item.clear) raise_offsets(rows);
      add(rows);
      bool const fits =
          sum[0] <= kLargestSum && sum[1] <= kLargestSum && offset[0] > -INFINITY && offset[1] > -INFINITY;
      if (__any_sync(0xffffffffu, !fits)) [[unlikely]] {  // so are NaN, and rows that see no key
        raise_offsets(rows);
        add(rows);
      }
      float const found = logarithm();
      if (strip.exists) __stcg(logs + int64_t(block) * (2 * kStripRows), found);
    }
  }

  // The strip's rows of the query into shared memory; those that do not exist are zeros.
  CUTE_DEVICE void load_queries(Strip const& strip) {
    constexpr int kUnits = C::kHeadDim / 8;  // of 16 bytes
    Tensor tile = make_tensor(make_smem_ptr(shared.query.data()), typename C::LayoutQ{});
    auto const* query = static_cast<typename C::Element const*>(args.query) + item.batch * args.query_strides.batch +
                        strip.head * args.query_strides.head;
    for (int i = threadIdx.x % 128; i < kStripRows * kUnits; i += 128) {
      int const row = i / kUnits, unit = i % kUnits;
      int const source = strip.exists ? sampled_row(args, strip.of * kStripRows + row) : -1;
      uint4 loaded = make_uint4(0, 0, 0, 0);
      if (source >= 0) loaded = __ldg(reinterpret_cast<uint4 const*>(query + source * args.query_strides.row) + unit);
      *reinterpret_cast<uint4*>(&tile(row, unit * 8, consumer)) = loaded;
    }
    cutlass::arch::fence_view_async_shared();
    cutlass::arch::NamedBarrier::sync(128, consumer);
  }

  // The products of the rows with the next key block.
  CUTE_DEVICE void score(Scores& scores) {
    Tensor query = make_tensor(make_smem_ptr(shared.query.data()), typename C::LayoutQ{});
    Tensor key = make_tensor(make_smem_ptr(shared.key.data()), typename C::LayoutK{});
    typename C::Mma mma;
    auto slice = mma.get_slice(threadIdx.x % 128);
    Tensor query_operand = slice.partition_fragment_A(query);
    Tensor key_operand = slice.partition_fragment_B(key);
    Barrier const& barrier = shared.key_barrier[key_stage.index];
    wait_full(barrier, key_stage.parity);
    multiply(mma, query_operand(_, _, _, consumer), key_operand(_, _, _, key_stage.index), scores,
             GMMA::ScaleOut::Zero);
    warpgroup_wait<0>();
    warpgroup_fence_operand(scores);
    release(barrier);
    key_stage.advance();
  }

  // Scores of keys that a row does not see become -inf: later ones and those behind the end,
  template <class Rows>
  CUTE_DEVICE void hide(Rows& rows, int block) const {
    int const first = block * kBlock + column_lane() * 2;
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      int const last = min(position[r], args.kv_len - 1);
      CUTE_UNROLL
      for (int i = 0; i < size<1>(rows); ++i) {
        if (first + i / 2 * 8 + i % 2 > last) rows(r, i) = -INFINITY;
      }
    }
    if (args.key_segment) hide_padding(rows, first);
  }

  // and padding.
  template <class Rows>
  CUTE_DEVICE void hide_padding(Rows& rows, int first) const {
    int32_t const* const segment = args.key_segment + item.batch * args.key_segment_stride;
    CUTE_UNROLL
    for (int i = 0; i < size<1>(rows); ++i) {
      int const key = min(first + i / 2 * 8 + i % 2, args.kv_len - 1);
      if (__ldg(segment + key) != 0) rows(0, i) = rows(1, i) = -INFINITY;
    }
  }

  template <class Rows>
  CUTE_DEVICE void raise_offsets(Rows const& rows) {
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      float largest = -INFINITY;
      CUTE_UNROLL
      for (int i = 0; i < size<1>(rows); ++i) largest = fmaxf(largest, rows(r, i));
      offset[r] = fmaxf(offset[r], quad_max(largest) * args.scale_log2);
    }
  }

  // This thread's part of the rows' sums in the block.
  template <class Rows>
  CUTE_DEVICE void add(Rows const& rows) {
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      float const zero = offset[r] == -INFINITY ? 0.f : offset[r];
      float sums[2] = {0.f, 0.f}, squared[2] = {0.f, 0.f};
      CUTE_UNROLL
      for (int i = 0; i < size<1>(rows); ++i) {
        float const weight = exp2_approximate(fmaf(rows(r, i), args.scale_log2, -zero));
        sums[i % 2] += weight;
        squared[i % 2] = fmaf(weight, weight, squared[i % 2]);
      }
      sum[r] = sums[0] + sums[1];
      squares[r] = squared[0] + squared[1];
    }
  }

  // The quad's sums of its two rows, one a lane: the first row's sum and 2-norm, then the other's.
  CUTE_DEVICE float logarithm() const {
    bool const second = column_lane() / 2, norm = column_lane() % 2;
    auto exchanged = [](float low, float high, bool upper, int side) {
      return (upper ? high : low) + __shfl_xor_sync(0xffffffffu, upper ? low : high, side);
    };
    float const of_row = exchanged(sum[0], sum[1], second, 2),
                of_squares = exchanged(squares[0], squares[1], second, 2);
    float const found = __log2f(exchanged(of_row, of_squares, norm, 1)) * (norm ? 0.5f : 1.f);
    float const zero = second ? offset[1] : offset[0];
    return found + (zero == -INFINITY ? 0.f : zero);
  }
};

}  // namespace sampleattn::sm90::budget
