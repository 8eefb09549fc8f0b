// A consumer warp group: 64 rows of one query tile. Of every row and key block the squares of its keys' exponentials are
// kept, summed and relative to an offset of the row, until the row's total is known; the writers turn them into bits.
//
// Own keys are multiplied as they are, representatives as bytes: see codes.h. Of the latter a thread holds all products of
// a block, so that it finds the largest of a group of landmarks alone, and before a product becomes a score.
#pragma once

#include "select_adaptive/sm90/codes.h"
#include "select_adaptive/sm90/squares.h"
#include "shared/landmarks.h"
#include "shared/sm90/accumulator.h"
#include "shared/sm90/notes.h"
#include "shared/sm90/products.h"

namespace sampleattn::sm90::adaptive {

// A mass above this and the row gets a new offset: its square and, of the sum of all, the square's inverse must be floats.
constexpr float kLargestMass = 0x1p46f;

template <class C>
struct Consumer {
  using Scores = decltype(partition_fragment_C(typename C::Mma{}, Shape<_64, Int<C::kColumns>>{}));
  using Products = decltype(partition_fragment_C(typename C::CodeMma{}, Shape<_64, Int<C::kColumns>>{}));

  Arguments const& args;
  SharedStorage<C>& shared;
  int const consumer;  // 0 to 3; the first two work on the item's first tile

  Stage<2> query_stage;
  Stage<C::kStages> key_stage;

  // Of the current item.
  int own;  // of this warp group's tile, see QueryBlock
  int head_kv;  // batch * kv_heads + key/value head
  uint32_t first_quad;  // of the head's; 32 bits count what fits into memory beside keys
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

  CUTE_DEVICE uint32_t* squares(int quad) const {
    return squares_of(args, query_stage.index, quad, consumer / 2, warp()) + lane();
  }

  CUTE_DEVICE void run() {
    for (int round = 0; round * int(gridDim.x) < args.item_count; ++round) {
      if (item_of_round(round, blockIdx.x, gridDim.x) < args.item_count) work_on(shared.item[query_stage.index]);
    }
  }

  CUTE_DEVICE void work_on(Item const& item) {
    Barrier const& barrier = shared.query_barrier[query_stage.index];
    wait_full(barrier, query_stage.parity);
    own = agree(read_alone(item.tile[consumer / 2].own));
    head_kv = agree(read_alone(item.head_kv)) + agree(read_alone(item.batch)) * args.kv_heads;
    first_quad = uint32_t(head_kv) * args.quad_count;
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      offset[r] = -INFINITY;
      total[r] = 0.f;
    }
    int const item_own = agree(read_alone(item.own)), behind = agree(read_alone(item.behind));

    for (int block = agree(read_alone(item.first)); block < behind; ++block) {
      Scores scores = partition_fragment_C(typename C::Mma{}, Shape<_64, Int<C::kColumns>>{});
      score(scores);
      if (block >= own) add_exact(scores, block, args.position(agree(read_alone(item.tile[consumer / 2].row))));
    }
    encode_queries();
    int const whole = agree(args.key_segment ? 0 : min(own, args.kv_len / kBlock));  // blocks before it lack no key
    Products products = partition_fragment_C(typename C::CodeMma{}, Shape<_64, Int<C::kColumns>>{});
    float2 const* terms = code_terms(args) + (first_quad * 4 + column_lane());
    uint32_t* place = squares(0);
    int tile = 0;
    for (; tile + C::kBlocks <= whole; tile += C::kBlocks, terms += C::kBlocks, place += C::kQuads * kQuadStride) {
      if (!work_on_whole<true>(products, tile, terms, place)) [[unlikely]]
        add_estimates(products, tile);
    }
    for (; tile < item_own; tile += C::kBlocks, terms += C::kBlocks, place += C::kQuads * kQuadStride) {
      bool added = tile >= own;  // it is for the other query tile
      if (!added && min(tile + C::kBlocks, own) <= whole) {
        added = work_on_whole<false>(products, tile, terms, place);
      } else {
        score(products);
      }
      if (!added) add_estimates(products, tile);
    }
    hand_over(agree(read_alone(item.tile[consumer / 2].stop)) - agree(read_alone(item.tile[consumer / 2].row)),
              sink_of(agree(read_alone(item.tile[consumer / 2].head))));
    if constexpr (C::kQueryStages == 1) release(shared.query_place);
    release(barrier);
    query_stage.advance();
  }

  // A tile of representatives of whole blocks; kAll: the query tile takes all of them, and not only the first. False, and
  // the scores are not added, if some row needs another offset for that.
  template <bool kAll>
  CUTE_DEVICE bool work_on_whole(Products& products, int first_block, float2 const* terms_place, uint32_t* place) {
    float2 terms[C::kQuads];
    CUTE_UNROLL
    for (int quad = 0; quad < C::kQuads; ++quad) terms[quad] = __ldg(terms_place + quad * 4);
    score(products);
    return add_whole_estimates<kAll>(products, terms, first_block, place);
  }

  // This warp group's rows of queries, and later their bytes.
  CUTE_DEVICE unsigned char* own_rows() const {
    return reinterpret_cast<unsigned char*>(shared.query.data() + own_queries() * C::kTileElements) +
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

  // The exact scores are done: queries become bytes, in their place, each row's largest number the largest.
  CUTE_DEVICE void encode_queries() {
    using Element = typename C::Element;
    float factor[2];
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) factor[r] = read_numbers(r);
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
    Tensor query = local_tile(make_tensor(make_smem_ptr(shared.query.data()), typename C::LayoutQ{}),
                              Shape<_64, Int<C::kHeadDim>, _4>{}, make_coord(consumer % 2, _0{}, _0{}));
    using Element = typename C::Element;
    Tensor key = make_tensor(make_smem_ptr(reinterpret_cast<Element const*>(shared.key.data())), typename C::LayoutK{});
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
      Barrier const& barrier = shared.key_barrier[key_stage.index];
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
    Tensor codes = make_tensor(codes_at(shared.key.data()), typename C::LayoutCodes{});
    typename C::CodeMma mma;
    auto slice = mma.get_slice(threadIdx.x % 128);
    Tensor query = local_tile(make_tensor(codes_at(own_rows()), typename C::LayoutQueryCodes{}),
                              Shape<_64, Int<C::kHeadDim>>{}, make_coord(_0{}, _0{}));
    Tensor query_operand = slice.partition_fragment_A(query);
    Tensor code_operand = slice.partition_fragment_B(codes);
    Barrier const& barrier = shared.key_barrier[key_stage.index];
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

  // What the estimate of this thread's block of a quad needs beside its products.
  struct Terms {
    float weight;  // log2 of how many keys the mean stands for; -inf for none
    float2 of_codes;  // what a unit is worth, and the spread of the mean's keys
    int existing;  // members: those that the block has come first

    CUTE_DEVICE float number() const { return fmaxf(weight, 0.f); }
    CUTE_DEVICE float spread() const { return of_codes.y; }
  };

  // A row's estimated attention to a block: its mass, and what the squares of its keys' exponentials sum to.
  struct Estimate {
    float mass, squares;

    CUTE_DEVICE Estimate only_if(bool counts) const { return {counts ? mass : 0.f, counts ? squares : 0.f}; }
  };

  CUTE_DEVICE int64_t term_place(int member, int block) const {
    return (int64_t(head_kv) * C::kMembers + member) * args.n() + block;
  }

  CUTE_DEVICE bool lacks(int member, int block) const {
    return __ldg(args.log_weights + term_place(member, block)) == -INFINITY;
  }

  CUTE_DEVICE Terms read_terms(int block) const {
    if (block >= own) return {-INFINITY, {0.f, 0.f}, 0};
    int existing = C::kMembers;
    // Only padding and the end of the keys leave a block with fewer keys than landmarks.
    if (args.key_segment || block + 1 == args.n()) {
      CUTE_NO_UNROLL
      while (existing > 1 && lacks(existing - 1, block)) --existing;
    }
    return {__ldg(args.log_weights + term_place(0, block)) * sampleattn::adaptive::kLog2E,
            __ldg(code_terms(args) + first_quad * 4 + block), existing};
  }

  // What the mean's score grows by for the spread of its keys: at most by what so many keys can hold.
  CUTE_DEVICE float boost(Terms const& terms, int r) const {
    return fminf(half_norm[r] * terms.spread(), terms.number());
  }

  // The product of a row with the landmark that it looks for most, of the group whose first is `member`.
  template <class Rows>
  CUTE_DEVICE static int largest_product(Rows const& rows, Terms const& terms, int quad, int r, int member) {
    int largest = rows(r, quad * C::kMembers + member);
    CUTE_UNROLL
    for (int other = member + kLandmarkGroups; other < C::kMembers; other += kLandmarkGroups) {
      int const product = rows(r, quad * C::kMembers + other);
      largest = max(largest, other < terms.existing ? product : INT_MIN);
    }
    return largest;
  }

  // A row's attention to this thread's block of a quad, relative to the row's offset.
  template <class Rows>
  CUTE_DEVICE Estimate estimate(Rows const& rows, Terms const& terms, int quad, int r, float common) const {
    float const worth = unit[r] * terms.of_codes.x;
    float const mean = fmaf(float(rows(r, quad * C::kMembers)), worth, boost(terms, r) + (terms.weight + common));
    // The keys that the mean stands for share its mass, the less equally the further they spread.
    float const unequal = fminf(fmaf(2.f, boost(terms, r), -terms.number()), 0.f);
    Estimate found{exp2_approximate(mean), exp2_approximate(fmaf(2.f, mean, unequal))};
    CUTE_UNROLL
    for (int member = 1; member <= kLandmarkGroups; ++member) {
      float const score = fmaf(float(largest_product(rows, terms, quad, r, member)), worth, common);
      float const term = member < terms.existing ? exp2_approximate(score) : 0.f;
      found = {found.mass + term, fmaf(term, term, found.squares)};
    }
    return found;
  }

  // Adds the estimated masses of a tile of whole blocks to the rows' totals, and stores the squares.
  template <bool kAll>
  CUTE_DEVICE bool add_whole_estimates(Products& products, float2 (&of_codes)[C::kQuads], int first_block,
                                       uint32_t* place) {
    auto rows = as_rows(products);
    float added[2];
    float const common[2] = {base[0] - offset[0], base[1] - offset[1]};
    CUTE_UNROLL
    for (int quad = 0; quad < C::kQuads; ++quad) {
      Terms const terms{args.whole_number, of_codes[quad], C::kMembers};
      Estimate found[2];
      CUTE_UNROLL
      for (int r = 0; r < 2; ++r) {
        found[r] = estimate(rows, terms, quad, r, common[r]);
        float const mass = kAll || quad * 4 + column_lane() < own - first_block ? found[r].mass : 0.f;
        added[r] = quad == 0 ? mass : added[r] + mass;
      }
      __stcg(place + quad * kQuadStride, pack_squares(found[0].squares, found[1].squares));
    }
    bool const fits = added[0] <= kLargestMass && added[1] <= kLargestMass;  // not so for NaN
    if (__any_sync(0xffffffffu, !fits)) [[unlikely]]
      return false;
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) total[r] += added[r];
    return true;
  }

  // The same for any tile.
  CUTE_DEVICE void add_estimates(Products& products, int first_block) {
    auto rows = as_rows(products);
    CUTE_UNROLL
    for (int quad = 0; quad < C::kQuads; ++quad) {
      int const group = first_block / 4 + quad;
      int const block = group * 4 + column_lane();
      bool const counts = block < own;
      Terms const terms = read_terms(block);
      Estimate found[2];
      bool fits = true;
      CUTE_UNROLL
      for (int r = 0; r < 2; ++r) {
        found[r] = estimate(rows, terms, quad, r, base[r] - offset[r]).only_if(counts);
        fits = fits && found[r].mass <= kLargestMass;  // not so for NaN
      }
      if (__any_sync(0xffffffffu, !fits)) [[unlikely]]
        raise_offsets(rows, terms, quad, group, counts, found);
      CUTE_UNROLL
      for (int r = 0; r < 2; ++r) total[r] += found[r].mass;
      if (group * 4 < own) __stcg(squares(group), pack_squares(found[0].squares, found[1].squares));
    }
  }

  // The rows have no offset yet, or scores far above it: the highest score of a quad becomes the offset.
  template <class Rows>
  CUTE_DEVICE void raise_offsets(Rows const& rows, Terms const& terms, int quad, int group, bool counts,
                                 Estimate (&found)[2]) {
    float factor[2];
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      float const worth = unit[r] * terms.of_codes.x;
      float highest = fmaf(float(rows(r, quad * C::kMembers)), worth, terms.weight + boost(terms, r));
      CUTE_UNROLL
      for (int member = 1; member <= kLandmarkGroups; ++member) {
        float const score = float(largest_product(rows, terms, quad, r, member)) * worth;
        highest = fmaxf(highest, member < terms.existing ? score : -INFINITY);
      }
      factor[r] = move_offset(r, quad_max(counts ? highest + base[r] : -INFINITY));
      found[r] = estimate(rows, terms, quad, r, base[r] - finite_offset(r)).only_if(counts);
    }
    for (int before = 0; before < group; ++before) {
      uint32_t* place = squares(before);
      uint32_t const packed = __ldcg(place);
      __stcg(place,
             pack_squares(low_square(packed) * factor[0] * factor[0], high_square(packed) * factor[1] * factor[1]));
    }
  }

  // A query head's sink in powers of two.
  CUTE_DEVICE float sink_of(int head) const {
    if (!args.sink_logits) return -INFINITY;
    return __ldg(args.sink_logits + head * args.sink_logit_stride) * sampleattn::adaptive::kLog2E;
  }

  // The squares are complete, and so are the totals but for the sink. Every lane that writes one says so itself. rows: of
  // the tile, those that count.
  CUTE_DEVICE void hand_over(int rows, float sink) {
    float inverse[2];
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      float const sum = quad_sum(total[r]);
      bool const counts = own_row() + 8 * r < rows && sum > 0.f;
      float const all = sum + exp2_approximate(sink - offset[r]);  // of infinity, shares are the 0 that they are nearly
      inverse[r] = counts ? 1.f / (all * all) : 0.f;
    }
    __syncwarp();
    if (column_lane() != 0) return;
    shared.inverse_square[query_stage.index][consumer / 2][warp()][lane() / 4] = make_float2(inverse[0], inverse[1]);
    TransactionBarrier::arrive(&shared.squares_barrier[query_stage.index].full);
  }
};

}  // namespace sampleattn::sm90::adaptive
