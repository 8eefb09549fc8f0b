// A consumer warp group: 64 rows of every tile. The key tiles of all its query tiles form one stream, so that the
// first product of a tile overlaps with the last of the tile before it.
#pragma once

#include "block_sparse_attention/sm90/config.h"
#include "block_sparse_attention/sm90/epilogue.h"
#include "block_sparse_attention/sm90/mask.h"
#include "shared/sm90/notes.h"
#include "shared/sm90/products.h"

namespace sampleattn::sm90 {

// The two consumers take turns at issuing matrix products: while one computes its softmax, the other's run.
CUTE_DEVICE void wait_for_turn(int consumer) { asm volatile("bar.sync %0, 256;" ::"r"(consumer + 1) : "memory"); }
CUTE_DEVICE void pass_turn(int consumer) { asm volatile("bar.arrive %0, 256;" ::"r"((consumer ^ 1) + 1) : "memory"); }
CUTE_DEVICE void sync_consumer(int consumer) { asm volatile("bar.sync %0, 128;" ::"r"(consumer + 3) : "memory"); }

// Zeroes the value rows of keys that no row sees: their weight is 0, but 0 * NaN is NaN.
template <class C>
CUTE_DEVICE void clear_invalid_values(typename C::Element* stage, KeyTile const& keys, Arguments const& args, int batch,
                                      int consumer) {
  int const slot = threadIdx.x % 128;
  if (slot < C::kKeys) {
    int const key = slot < kKeyRun ? keys.first_run + slot : keys.second_run + slot - kKeyRun;
    if (key < args.kv_len && __ldg(args.key_segment + batch * args.key_segment_stride + key) < 0) {
      for (int chunk = 0; chunk < C::kHeadDimV; chunk += C::kChunkV) {
        auto* row = reinterpret_cast<uint4*>(stage + chunk * C::kKeys + slot * C::kChunkV);
        for (int i = 0; i < C::kChunkV / 8; ++i) row[i] = make_uint4(0, 0, 0, 0);
      }
    }
  }
  cutlass::arch::fence_view_async_shared();
  sync_consumer(consumer);
}

CUTE_DEVICE KeyTile read_tile(KeyTile const& shared) {
  return {agree(read_alone(shared.first_run)), agree(read_alone(shared.second_run)), agree(read_alone(shared.flags))};
}
CUTE_DEVICE QueryTile read_tile(QueryTile const& shared) {
  return {agree(read_alone(shared.head)), agree(read_alone(shared.row)), agree(read_alone(shared.key_tiles))};
}

// A key tile of the stream: where it is read, and what its scores need.
struct StreamStep {
  QueryTile tile;
  int flags;  // of the key tile; one lane knows them until the products are issued
  int key_index, query_index;
  bool last;  // of its query tile
};

template <class C>
struct Consumer {
  using Element = typename C::Element;
  using Scores = decltype(partition_fragment_C(typename C::MmaQK{}, Shape<_64, Int<C::kKeys>>{}));
  using Output = decltype(partition_fragment_C(typename C::MmaPV{}, Shape<_64, Int<C::kHeadDimV>>{}));
  using OperandLayout = decltype(as_operand_a(typename Scores::layout_type{}));
  using Weights = decltype(make_tensor<Element>(OperandLayout{}));

  Arguments const& args;
  SharedStorage<C>& shared;
  int const consumer;
  float const scale_log2 = args.scale * 1.4426950408889634f;

  Output output;
  Weights weights;
  SoftmaxState state;
  float correction[2];
  Stage<C::kQueryStages> query_stage;  // where the next step's query tile is, or will be, as are:
  Stage<C::kKeyStages> key_stage;
  Stage<C::kValueStages> value_stage;  // (of the oldest step whose values are not multiplied yet)
  int remaining = 0;  // key tiles of the current query tile that were not fetched yet

  // The thread's first row of a tile. Needed rarely, so it is derived from the thread's number anew: head dim 256
  // has no register left to keep it in.
  CUTE_DEVICE static int own_row() {
    int number;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(number));
    number -= 128;
    return number / 32 * 16 + number % 32 / 4;
  }

  // Waits for the next key tile of the stream and for its query tile, and goes past it. False if there is none.
  CUTE_DEVICE bool fetch(StreamStep& step) {
    if (remaining == 0) {
      wait_full(shared.query_barrier[query_stage.index], query_stage.parity);
      step.tile = read_tile(shared.query_tile[query_stage.index]);
      if (step.tile.key_tiles == 0) return false;
      remaining = step.tile.key_tiles;
    }
    step.last = --remaining == 0;
    wait_full(shared.key_barrier[key_stage.index], key_stage.parity);
    step.flags = read_alone(shared.key_tile[key_stage.index].flags);
    step.key_index = key_stage.index;
    step.query_index = query_stage.index;
    key_stage.advance();
    if (step.last) query_stage.advance();
    return true;
  }
  CUTE_DEVICE void wait_for_values(StreamStep const& step) {
    wait_full(shared.value_barrier[value_stage.index], value_stage.parity);
    if (step.flags & kClearInvalidValues) [[unlikely]] {
      clear_invalid_values<C>(shared.value.data() + value_stage.index * C::kKeys * C::kHeadDimV,
                              read_tile(shared.value_tile[value_stage.index]), args, step.tile.head / args.q_heads,
                              consumer);
    }
  }

  CUTE_DEVICE void multiply_keys(Scores& scores, StreamStep const& step) {
    Tensor query = local_tile(make_tensor(make_smem_ptr(shared.query.data()), typename C::LayoutQ{}),
                              Shape<_64, Int<C::kHeadDim>, Int<C::kQueryStages>>{}, make_coord(consumer, _0{}, _0{}));
    Tensor key = make_tensor(make_smem_ptr(shared.key.data()), typename C::LayoutK{});
    typename C::MmaQK mma;
    auto slice = mma.get_slice(threadIdx.x % 128);
    Tensor query_operand = slice.partition_fragment_A(query);
    Tensor key_operand = slice.partition_fragment_B(key);
    multiply(mma, query_operand(_, _, _, step.query_index), key_operand(_, _, _, step.key_index), scores,
             GMMA::ScaleOut::Zero);
  }
  CUTE_DEVICE void multiply_values() {
    Tensor value = make_tensor(make_smem_ptr(shared.value.data()), typename C::LayoutV{});
    typename C::MmaPV mma;
    Tensor value_operand = mma.get_slice(threadIdx.x % 128).partition_fragment_B(value);
    multiply(mma, weights, value_operand(_, _, _, value_stage.index), output, GMMA::ScaleOut::One);
  }

  // Half the squared norms of this thread's rows of a query tile, times the scale.
  CUTE_DEVICE void half_norms(int query_index, float (&half_norm)[2]) const {
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      // A row's chunk is contiguous, its 16-byte units are in some order: the sum does not mind.
      float sum = 0.f;
      CUTE_UNROLL
      for (int chunk = 0; chunk < C::kHeadDim; chunk += C::kChunk) {
        auto const* row = reinterpret_cast<uint4 const*>(shared.query.data() + query_index * kTileRows * C::kHeadDim +
                                                         chunk * kTileRows + (own_row() + 8 * r) * C::kChunk);
        for (int unit = threadIdx.x % 4; unit < C::kChunk / 8; unit += 4) {
          uint4 const loaded = row[unit];
          auto const* element = reinterpret_cast<Element const*>(&loaded);
          CUTE_UNROLL
          for (int i = 0; i < 8; ++i) sum = fmaf(float(element[i]), float(element[i]), sum);
        }
      }
      half_norm[r] = 0.5f * args.scale * quad_sum(sum);
    }
  }

  // The scores of a key tile are complete: mask what must be masked and give the stages back.
  CUTE_DEVICE void finish_scores(Scores& scores, StreamStep const& step) {
    warpgroup_fence_operand(scores);
    constexpr int kMeansFlag = C::kTakesMeans ? kMeans : 0;
    if (step.flags & (kMaskPositions | kMaskSegments | kMeansFlag)) [[unlikely]] {
      KeyTile const keys = read_tile(shared.key_tile[step.key_index]);
      int const row = step.tile.row + own_row();
      if (step.flags & kMaskPositions) mask_positions(scores, keys, args, row);
      if (step.flags & kMaskSegments) mask_segments(scores, keys, args, step.tile.head / args.q_heads, row);
      if (step.flags & kMeansFlag) {
        float half_norm[2];
        half_norms(step.query_index, half_norm);
        weigh_means(scores, shared.mean_terms + step.key_index * C::kKeys, half_norm);
      }
    }
    release(shared.key_barrier[step.key_index]);
    if (step.last) release(shared.query_barrier[step.query_index]);
  }
  // Waits until only the `kPending` newest products run; the older ones are those of the values, which are given back.
  template <int kPending>
  CUTE_DEVICE void finish_values() {
    warpgroup_wait<kPending>();
    warpgroup_fence_operand(output);
    release(shared.value_barrier[value_stage.index]);
    value_stage.advance();
  }
  CUTE_DEVICE void convert_weights(Scores& scores) {
    Tensor exponentials = make_tensor(scores.data(), OperandLayout{});
    auto* packed = reinterpret_cast<uint32_t*>(&weights(0));
    CUTE_UNROLL
    for (int i = 0; i < size(weights) / 2; ++i) {
      packed[i] = pack(exponentials(2 * i), exponentials(2 * i + 1), Element{});
    }
  }

  // Softmax of the scores of `step`, while the product of the values of `before` runs, and that product's end.
  template <int kPending>
  CUTE_DEVICE void soften(Scores& scores, StreamStep const& before) {
    SoftmaxState const finished = state;
    if (before.last) state = SoftmaxState{};
    bool const corrected = update_softmax(state, scores, correction, scale_log2);
    // The fence, and a wait in each branch instead of one before, keep the compiler from moving the softmax below it.
    warpgroup_fence_operand(scores);
    if (before.last) [[unlikely]] {
      finish_values<kPending>();
      write_tile<C>(output, finished, args, before.tile, own_row());
      clear(output);
    } else {
      finish_values<kPending>();
      if (corrected) [[unlikely]]
        rescale(output, correction);
    }
    convert_weights(scores);
  }

  // The first key tile of the stream. False if there is none.
  CUTE_DEVICE bool begin(Scores& scores, StreamStep& step) {
    clear(output);
    if (!fetch(step)) return false;
    if (consumer == 1) pass_turn(consumer);
    multiply_keys(scores, step);
    step.flags = agree(step.flags);
    warpgroup_wait<0>();
    finish_scores(scores, step);
    update_softmax(state, scores, correction, scale_log2);
    convert_weights(scores);
    return true;
  }

  // Step n: the products of key tile n+1 and of the values of n are issued together, then the softmax of n+1 is
  // computed while the latter runs. Whatever needs waiting for is waited for before the turn, so that it is short.
  CUTE_DEVICE void advance(Scores& scores, StreamStep const& step, StreamStep& next) {
    wait_for_turn(consumer);
    multiply_keys(scores, next);
    multiply_values();
    pass_turn(consumer);
    next.flags = agree(next.flags);
    warpgroup_wait<1>();
    finish_scores(scores, next);
    soften<0>(scores, step);
  }

  CUTE_DEVICE void run() {
    Scores scores = partition_fragment_C(typename C::MmaQK{}, Shape<_64, Int<C::kKeys>>{});
    StreamStep step, next;
    if (!begin(scores, step)) return;
    next = step;
    while (fetch(next)) {
      wait_for_values(step);
      advance(scores, step, next);
      step = next;
    }
    multiply_last_values(step);
  }

  // The same with the scores of two key tiles, n+1 and n+2, whose products are issued together: the second never makes
  // its softmax wait.
  CUTE_DEVICE void run_in_pairs() {
    Scores even = partition_fragment_C(typename C::MmaQK{}, Shape<_64, Int<C::kKeys>>{});
    Scores odd = partition_fragment_C(typename C::MmaQK{}, Shape<_64, Int<C::kKeys>>{});
    StreamStep step, next;
    if (!begin(even, step)) return;
    next = step;
    while (fetch(next)) {
      StreamStep second = next;
      wait_for_values(step);
      if (!fetch(second)) {
        advance(even, step, next);
        step = next;
        break;
      }
      wait_for_turn(consumer);
      multiply_keys(even, next);
      multiply_values();
      multiply_keys(odd, second);
      pass_turn(consumer);
      next.flags = agree(next.flags);
      second.flags = agree(second.flags);
      warpgroup_wait<2>();
      finish_scores(even, next);
      soften<1>(even, step);
      wait_for_values(next);
      multiply_values();
      warpgroup_wait<1>();
      finish_scores(odd, second);
      soften<0>(odd, next);
      step = second;
      next = second;
    }
    multiply_last_values(step);
  }

  CUTE_DEVICE void multiply_last_values(StreamStep const& step) {
    wait_for_values(step);
    wait_for_turn(consumer);
    multiply_values();
    pass_turn(consumer);
    finish_values<0>();
    write_tile<C>(output, state, args, step.tile, own_row());
  }
};

template <class C>
CUTE_DEVICE void consume(Arguments const& args, SharedStorage<C>& shared, int consumer) {
  Consumer<C> self{args, shared, consumer};
  if constexpr (C::kScoreBuffers == 1) {
    self.run();
  } else {
    self.run_in_pairs();
  }
}

}  // namespace sampleattn::sm90
