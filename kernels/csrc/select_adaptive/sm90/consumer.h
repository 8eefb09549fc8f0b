// A consumer warp group: 64 rows of one query tile. Of every row and key block the squares of its keys' exponentials are
// kept, summed and relative to an offset of the row, until the row's total is known; the writers turn them into bits.
//
// Own keys are multiplied as they are, representatives as bytes: see codes.h. Of the latter a thread holds all products of
// a block, so that it finds the largest of a group of landmarks alone, and before a product becomes a score.
#pragma once

#include "select_adaptive/sm90/rows.h"
#include "select_adaptive/sm90/squares.h"
#include "shared/landmarks.h"

namespace sampleattn::sm90::adaptive {

// A mass above this and the row gets a new offset: its square and, of the sum of all, the square's inverse must be floats.
constexpr float kLargestMass = 0x1p46f;

template <class C>
struct Consumer : QueryRows<C> {
  using Base = QueryRows<C>;
  using Base::args, Base::consumer, Base::query_stage;
  using Base::lane, Base::column_lane, Base::warp, Base::own_row;
  using Base::own, Base::head_kv, Base::offset, Base::total, Base::half_norm, Base::base, Base::unit;
  using Base::score, Base::finite_offset, Base::move_offset;
  using typename Base::Products;

  SharedStorage<C>& shared;
  uint32_t first_quad;  // of the head's; 32 bits count what fits into memory beside keys

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
    this->begin(item);
    first_quad = uint32_t(head_kv) * args.quad_count;
    this->add_own_keys(item);
    float factor[2];
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) factor[r] = this->read_numbers(r);
    this->encode_queries(factor);
    int const item_own = agree(read_alone(item.own));
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
              this->sink_of(agree(read_alone(item.tile[consumer / 2].head))));
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
