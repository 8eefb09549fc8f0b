// A consumer warp group: 64 rows of one query tile. First their totals, of own keys and of stand-ins; then landmarks, as
// bytes: a row's total and the share that is asked for are one threshold, which the largest product of a block reaches or
// not. Blocks are added to those that are kept already.
#pragma once

#include "select_adaptive/sm90/rows.h"
#include "select_peaks/sm90/stand_ins.h"

namespace sampleattn::sm90::peaks {

using adaptive::Item;
using adaptive::item_of_round;

template <class C>
struct Consumer : adaptive::QueryRows<C> {
  using Base = adaptive::QueryRows<C>;
  using Base::consumer, Base::query_stage, Base::tiles;
  using Base::lane, Base::column_lane, Base::batch, Base::own_row;
  using Base::own, Base::head_kv, Base::offset, Base::total, Base::half_norm, Base::base, Base::unit;
  using Base::score, Base::finite_offset, Base::move_offset;
  using typename Base::Products, typename Base::Scores;

  Arguments const& args;
  float threshold[2];  // of the thread's rows: what a product, times its block's unit, must reach

  CUTE_DEVICE void run() {
    for (int round = 0; round * int(gridDim.x) < args.item_count; ++round) {
      if (item_of_round(round, blockIdx.x, gridDim.x) < args.item_count) work_on(tiles.item[query_stage.index]);
    }
  }

  CUTE_DEVICE void work_on(Item const& item) {
    Barrier const& barrier = tiles.query_barrier[query_stage.index];
    wait_full(barrier, query_stage.parity);
    this->begin(item);
    float factor[2];
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) factor[r] = this->read_numbers(r);
    this->add_own_keys(item);
    int const item_own = agree(read_alone(item.own));
    for (int tile = 0; tile < stand_in_tiles(item_own); ++tile) {
      Scores scores = partition_fragment_C(typename C::Mma{}, Shape<_64, Int<C::kColumns>>{});
      score(scores);
      if (own > 0) add_stand_ins(scores, tile * C::kColumns);
    }
    this->encode_queries(factor);
    int const row = agree(read_alone(item.tile[consumer / 2].row)),
              head = agree(read_alone(item.tile[consumer / 2].head));
    set_threshold(agree(read_alone(item.tile[consumer / 2].stop)) - row, this->sink_of(head));

    auto const* units = adaptive::code_terms(args) + (uint32_t(head_kv) * args.quad_count * 4 + column_lane());
    int64_t const query_block = (int64_t(batch()) * args.q_heads + head) * args.q_blocks() + row / kBlock;
    uint32_t* words = args.block_mask + query_block * args.mask_words;
    Products products = partition_fragment_C(typename C::CodeMma{}, Shape<_64, Int<C::kColumns>>{});
    for (int tile = 0; tile < item_own; tile += C::kBlocks, units += C::kBlocks) {
      float worth[C::kQuads];
      CUTE_UNROLL
      for (int quad = 0; quad < C::kQuads; ++quad) worth[quad] = __ldg(&units[quad * 4].x);
      score(products);
      if (tile < own) keep_peaks(products, worth, tile, words);
    }
    if constexpr (C::kQueryStages == 1) release(tiles.query_place);
    release(barrier);
    query_stage.advance();
  }

  // Adds a tile of stand-ins, from `first_column` on, to the rows' totals. Columns behind the last one cost nothing.
  CUTE_DEVICE void add_stand_ins(Scores& scores, int first_column) {
    auto rows = as_rows(scores);
    auto const* terms = stand_in_terms(args) + int64_t(head_kv) * args.stand_in_rows() + first_column;
    bool const sees_first = first_block(args, batch()) < own;
    int const used = kFirstRows + own / kPeakBlocks - first_column;
    constexpr int kPart = 32;
    float largest[2] = {-INFINITY, -INFINITY};
    CUTE_UNROLL
    for (int part = 0; part < C::kColumns; part += kPart) {
      if (part >= used) continue;
      CUTE_UNROLL
      for (int i = part / 4; i < (part + kPart) / 4; ++i) {
        int const column = i / 2 * 8 + column_lane() * 2 + i % 2;
        bool const of_first = i < kFirstRows / 4 && first_column == 0;
        bool const counts = of_first ? sees_first : column < used;
        float2 const term = counts ? __ldg(terms + column) : make_float2(-INFINITY, 0.f);
        CUTE_UNROLL
        for (int r = 0; r < 2; ++r) {
          float const boost = fminf(half_norm[r] * term.y, fmaxf(term.x, 0.f));
          float const common = of_first ? 0.f : base[r];
          rows(r, i) = fmaf(rows(r, i), args.scale_log2, term.x + boost + common);
          largest[r] = fmaxf(largest[r], rows(r, i));
        }
      }
    }
    float zero[2];
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      move_offset(r, quad_max(largest[r]));
      zero[r] = finite_offset(r);
    }
    CUTE_UNROLL
    for (int part = 0; part < C::kColumns; part += kPart) {
      if (part >= used) continue;
      CUTE_UNROLL
      for (int i = part / 4; i < (part + kPart) / 4; ++i) {
        CUTE_UNROLL
        for (int r = 0; r < 2; ++r) total[r] += exp2_approximate(rows(r, i) - zero[r]);
      }
    }
  }

  // The totals are complete but for the sink. rows: of the tile, those that count. A row of zeros has scores of zero: it
  // looks for every block or for none; beside an infinite sink the threshold is NaN, which nothing reaches.
  CUTE_DEVICE void set_threshold(int rows, float sink) {
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      float const sum = quad_sum(total[r]);
      float const of_keys = offset[r] + __log2f(sum), highest = fmaxf(of_keys, sink);
      float const log_total = highest + __log2f(exp2_approximate(of_keys - highest) + exp2_approximate(sink - highest));
      float const above = log_total + args.log2_peak - base[r];
      float const wanted = unit[r] > 0.f ? above / unit[r] : above > 0.f ? INFINITY : -INFINITY;
      threshold[r] = own_row() + 8 * r < rows && sum > 0.f ? wanted : INFINITY;
    }
  }

  CUTE_DEVICE void keep_peaks(Products& products, float const (&worth)[C::kQuads], int first_block, uint32_t* words) {
    auto rows = as_rows(products);
    uint32_t kept = 0;
    CUTE_UNROLL
    for (int quad = 0; quad < C::kQuads; ++quad) {
      bool reached = false;
      CUTE_UNROLL
      for (int r = 0; r < 2; ++r) {
        int largest = rows(r, quad * C::kMembers + 1);
        CUTE_UNROLL
        for (int member = 2; member < C::kMembers; ++member) {
          largest = max(largest, rows(r, quad * C::kMembers + member));
        }
        reached = reached || float(largest) * worth[quad] >= threshold[r];  // not so for NaN
      }
      uint32_t of_lanes = __ballot_sync(0xffffffffu, reached);  // a lane's block of four is lane % 4
      of_lanes |= of_lanes >> 16;
      of_lanes |= of_lanes >> 8;
      of_lanes |= of_lanes >> 4;
      kept |= (of_lanes & 15u) << (quad * 4);
    }
    if (first_block + C::kBlocks > own) kept &= (1u << (own - first_block)) - 1;
    if (kept && lane() == 0) atomicOr(words + first_block / 32, kept << first_block % 32);
  }
};

}  // namespace sampleattn::sm90::peaks
