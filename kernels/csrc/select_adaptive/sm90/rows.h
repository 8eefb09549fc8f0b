// A consumer warp group's 64 rows of one query tile: their exact scores and totals, and their bytes.
#pragma once

#include "select_adaptive/sm90/codes.h"
#include "shared/sm90/accumulator.h"
#include "shared/sm90/notes.h"
#include "shared/sm90/products.h"

namespace sampleattn::sm90::adaptive {

template <class C>
struct QueryRows {
  using Scores = decltype(partition_fragment_C(typename C::Mma{}, Shape<_64, Int<C::kColumns>>{}));
  using Products = decltype(partition_fragment_C(typename C::CodeMma{}, Shape<_64, Int<C::kColumns>>{}));

  Arguments const& args;
  SharedTiles<C>& tiles;
  int const consumer;  // 0 to 3; the first two work on the item's first tile

  Stage<2> query_stage;
  Stage<C::kStages> key_stage;

  // Of the current item.
  int own;  // of this warp group's tile, see QueryBlock
  int head_kv;  // batch * kv_heads + key/value head
  // Of this thread's rows (one, and the one eight further down), in powers of two.
  float offset[2];
  float total[2];  // this thread's part
  float half_norm[2];
  float base[2];  // the score of the head's common key, which the representatives are less
  float unit[2];  // what a product's unit is worth, but for the block's

  CUTE_DEVICE static int lane() { return threadIdx.x % 32; }
  CUTE_DEVICE static int column_lane() { return threadIdx.x % 4; }
  CUTE_DEVICE int warp() const { return consumer % 2 * 4 + threadIdx.x % 128 / 32; }  // within the tile's eight
  CUTE_DEVICE int batch() const { return head_kv / args.kv_heads; }
  CUTE_DEVICE int own_queries() const { return query_stage.index % C::kQueryStages * 2 + consumer / 2; }
  CUTE_DEVICE int own_row() const { return warp() * 16 + lane() / 4; }  // within the tile

  // Of an item whose queries are there: nothing is added yet.
  CUTE_DEVICE void begin(Item const& item) {
    own = agree(read_alone(item.tile[consumer / 2].own));
    head_kv = agree(read_alone(item.head_kv)) + agree(read_alone(item.batch)) * args.kv_heads;
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      offset[r] = -INFINITY;
      total[r] = 0.f;
    }
  }

  // The keys of the item's own blocks, of which this tile's are added to the totals.
  CUTE_DEVICE void add_own_keys(Item const& item) {
    int const behind = agree(read_alone(item.behind));
    for (int block = agree(read_alone(item.first)); block < behind; ++block) {
      Scores scores = partition_fragment_C(typename C::Mma{}, Shape<_64, Int<C::kColumns>>{});
      score(scores);
      if (block >= own) add_exact(scores, block, args.position(agree(read_alone(item.tile[consumer / 2].row))));
    }
  }

  // This warp group's rows of queries, and later their bytes.
  CUTE_DEVICE unsigned char* own_rows() const {
    return reinterpret_cast<unsigned char*>(tiles.query.data() + own_queries() * C::kTileElements) +
           consumer % 2 * 64 * C::kChunk * 2;
  }
  CUTE_DEVICE static int row_of_group(int r) { return threadIdx.x % 128 / 32 * 16 + lane() / 4 + 8 * r; }

  // Where 16 bytes of a row of queries lie, in the swizzled layouts of the products: of a row's kWidth bytes the units
  // change places. A chunk of bytes is as far from the next one as a chunk of queries.
  template <int kWidth>
  CUTE_DEVICE static int place_of_unit(int row, int unit) {
    constexpr int kUnits = kWidth / 16;
    return unit / kUnits * C::kChunkBytes + row * kWidth + (unit % kUnits ^ row / (8 / kUnits) % kUnits) * 16;
  }

  // The exact scores are done: queries become bytes, in their place. factor: of each row, see read_numbers.
  CUTE_DEVICE void encode_queries(float const (&factor)[2]) {
    using Element = typename C::Element;
    constexpr int kUnits = C::kCodeChunk / 32;  // of 32 numbers, a lane's eight of which lie together
    CUTE_UNROLL
    for (int chunk = 0; chunk < C::kHeadDim / C::kCodeChunk; ++chunk) {
      uint32_t words[2][kUnits][2];
      CUTE_UNROLL
      for (int r = 0; r < 2; ++r) {
        CUTE_UNROLL
        for (int i = 0; i < kUnits; ++i) {
          uint4 const loaded = numbers_of(r, chunk * kUnits + i);
          auto const* element = reinterpret_cast<Element const*>(&loaded);
          CUTE_UNROLL
          for (int half = 0; half < 2; ++half) {
            float numbers[4];
            CUTE_UNROLL
            for (int e = 0; e < 4; ++e) numbers[e] = float(element[half * 4 + e]);
            words[r][i][half] = pack_codes(numbers, factor[r]);
          }
        }
      }
      warp_group_barrier();  // bytes of one warp's rows may lie where another's were
      CUTE_UNROLL
      for (int r = 0; r < 2; ++r) {
        CUTE_UNROLL
        for (int i = 0; i < kUnits; ++i) {
          CUTE_UNROLL
          for (int half = 0; half < 2; ++half) {
            auto* unit = own_rows() + place_of_unit<C::kCodeChunk>(row_of_group(r), (chunk * kUnits + i) * 2 + half);
            reinterpret_cast<uint32_t*>(unit)[column_lane()] = words[r][i][half];
          }
        }
      }
    }
    cutlass::arch::fence_view_async_shared();
    warp_group_barrier();
  }

  // Eight of a row's numbers: of each 32, those that this lane's words of bytes are made of.
  CUTE_DEVICE uint4 numbers_of(int r, int unit) const {
    return *reinterpret_cast<uint4 const*>(own_rows() +
                                           place_of_unit<C::kChunk * 2>(row_of_group(r), unit * 4 + column_lane()));
  }

  // Takes what depends on a row's numbers alone. Returns what they must be multiplied by to become bytes.
  CUTE_DEVICE float read_numbers(int r) {
    auto const* common = static_cast<uint4 const*>(args.representatives) +
                         int64_t(head_kv) * C::kMembers * args.n() * (C::kHeadDim / 8) + column_lane();
    float squares = 0.f, with_common = 0.f, largest = 0.f;
    CUTE_UNROLL
    for (int i = 0; i < C::kHeadDim / 32; ++i) {
      uint4 const loaded = numbers_of(r, i);
      uint4 const other = __ldg(common + i * 4);
      auto const* element = reinterpret_cast<typename C::Element const*>(&loaded);
      auto const* of_common = reinterpret_cast<typename C::Element const*>(&other);
      CUTE_UNROLL
      for (int e = 0; e < 8; ++e) {
        float const x = float(element[e]);
        squares = fmaf(x, x, squares);
        with_common = fmaf(x, float(of_common[e]), with_common);
        largest = fmaxf(largest, fabsf(x));
      }
    }
    half_norm[r] = quad_sum(squares) * 0.5f * args.scale * args.scale_log2;
    base[r] = quad_sum(with_common) * args.scale_log2;
    largest = quad_max(largest);
    unit[r] = largest * (args.scale_log2 / kLargestCode);
    return code_factor(largest);
  }

  CUTE_DEVICE void warp_group_barrier() const { cutlass::arch::NamedBarrier::sync(128, consumer); }

  // The products of the queries with the next tile of keys.
  CUTE_DEVICE void score(Scores& scores) {
    Tensor query = local_tile(make_tensor(make_smem_ptr(tiles.query.data()), typename C::LayoutQ{}),
                              Shape<_64, Int<C::kHeadDim>, _4>{}, make_coord(consumer % 2, _0{}, _0{}));
    using Element = typename C::Element;
    Tensor key = make_tensor(make_smem_ptr(reinterpret_cast<Element const*>(tiles.key.data())), typename C::LayoutK{});
    typename C::Mma mma;
    auto slice = mma.get_slice(threadIdx.x % 128);
    Tensor query_operand = slice.partition_fragment_A(query);
    Tensor key_operand = slice.partition_fragment_B(key);
    // Hidden from the compiler: it would keep the addresses of all columns in registers beside the estimates.
    int queries = own_queries();
    asm volatile("" : "+r"(queries));
    constexpr int kSteps = size<2>(key_operand);
    CUTE_UNROLL
    for (int part = 0; part < C::kParts; ++part) {
      Barrier const& barrier = tiles.key_barrier[key_stage.index];
      wait_full(barrier, key_stage.parity);
      Tensor of_part = domain_offset(make_coord(_0{}, _0{}, part * kSteps, _0{}), query_operand);
      multiply(mma, of_part(_, _, _, queries), key_operand(_, _, _, key_stage.index), scores,
               part == 0 ? GMMA::ScaleOut::Zero : GMMA::ScaleOut::One);
      warpgroup_wait<0>();
      warpgroup_fence_operand(scores);
      release(barrier);
      key_stage.advance();
    }
  }

  // The same with the next tile of representatives.
  CUTE_DEVICE void score(Products& products) {
    auto codes_at = [](auto const* memory) { return make_smem_ptr(reinterpret_cast<int8_t const*>(memory)); };
    Tensor codes = make_tensor(codes_at(tiles.key.data()), typename C::LayoutCodes{});
    typename C::CodeMma mma;
    auto slice = mma.get_slice(threadIdx.x % 128);
    Tensor query = local_tile(make_tensor(codes_at(own_rows()), typename C::LayoutQueryCodes{}),
                              Shape<_64, Int<C::kHeadDim>>{}, make_coord(_0{}, _0{}));
    Tensor query_operand = slice.partition_fragment_A(query);
    Tensor code_operand = slice.partition_fragment_B(codes);
    Barrier const& barrier = tiles.key_barrier[key_stage.index];
    wait_full(barrier, key_stage.parity);
    multiply(mma, query_operand, code_operand(_, _, _, key_stage.index), products, GMMA::ScaleOut::Zero);
    warpgroup_wait<0>();
    warpgroup_fence_operand(products);
    release(barrier);
    key_stage.advance();
  }

  // Adds the scores of a block's keys to the rows' totals. position: that of the tile's first row. Columns that none of
  // the warp's rows sees cost nothing.
  CUTE_DEVICE void add_exact(Scores& scores, int block, int position) {
    auto rows = as_rows(scores);
    if (args.key_segment) hide_padding(rows, block);
    int const first_row = agree(position + warp() * 16 - block * kBlock), end = args.kv_len - block * kBlock;
    int const seen_by_all = min(first_row + 1, end), seen = min(first_row + 16, end);
    constexpr int kPart = 32;
    float largest[2] = {-INFINITY, -INFINITY};
    CUTE_UNROLL
    for (int part = 0; part < C::kColumns; part += kPart) {
      if (part >= seen) continue;
      if (part + kPart > seen_by_all) hide_later<kPart>(rows, part, first_row, end);
      CUTE_UNROLL
      for (int i = part / 4; i < (part + kPart) / 4; ++i) {
        CUTE_UNROLL
        for (int r = 0; r < 2; ++r) largest[r] = fmaxf(largest[r], rows(r, i));
      }
    }
    float zero[2];
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      move_offset(r, quad_max(largest[r]) * args.scale_log2);
      zero[r] = finite_offset(r);
    }
    CUTE_UNROLL
    for (int part = 0; part < C::kColumns; part += kPart) {
      if (part >= seen) continue;
      CUTE_UNROLL
      for (int r = 0; r < 2; ++r) {
        float sum = 0.f, other = 0.f;
        CUTE_UNROLL
        for (int i = part / 4; i < (part + kPart) / 4; i += 2) {
          sum += exp2_approximate(fmaf(rows(r, i), args.scale_log2, -zero[r]));
          other += exp2_approximate(fmaf(rows(r, i + 1), args.scale_log2, -zero[r]));
        }
        total[r] += sum + other;
      }
    }
  }

  // Scores of keys that a row does not see become -inf, in the columns from `part` on: those behind it,
  template <int kPart, class Rows>
  CUTE_DEVICE void hide_later(Rows& rows, int part, int first_row, int end) const {
    int const first = part + column_lane() * 2;
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      int const last = min(end - 1, first_row + lane() / 4 + 8 * r) - first;
      CUTE_UNROLL
      for (int i = 0; i < kPart / 4; ++i) {
        if (i / 2 * 8 + i % 2 > last) rows(r, part / 4 + i) = -INFINITY;
      }
    }
  }

  // and padding.
  template <class Rows>
  CUTE_DEVICE void hide_padding(Rows& rows, int block) const {
    int32_t const* segment = args.key_segment + batch() * args.key_segment_stride + block * kBlock;
    CUTE_UNROLL
    for (int i = 0; i < size<1>(rows); ++i) {
      int const entry = i / 2 * 8 + column_lane() * 2 + i % 2;
      if (block * kBlock + entry < args.kv_len && __ldg(segment + entry) != 0) rows(0, i) = rows(1, i) = -INFINITY;
    }
  }

  CUTE_DEVICE float finite_offset(int r) const { return offset[r] == -INFINITY ? 0.f : offset[r]; }

  // Raises a row's offset to `highest` if that is above it. Returns what masses so far must be scaled by.
  CUTE_DEVICE float move_offset(int r, float highest) {
    float const before = offset[r];
    offset[r] = fmaxf(before, highest);
    float const factor = exp2_approximate(before - finite_offset(r));
    total[r] *= factor;
    return factor;
  }

  // A query head's sink in powers of two.
  CUTE_DEVICE float sink_of(int head) const {
    if (!args.sink_logits) return -INFINITY;
    return __ldg(args.sink_logits + head * args.sink_logit_stride) * sampleattn::adaptive::kLog2E;
  }
};

}  // namespace sampleattn::sm90::adaptive
