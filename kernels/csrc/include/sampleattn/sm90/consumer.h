// A consumer warp group: 64 rows of every tile. The key tiles of all its query tiles form one stream, so that the
// first product of a tile overlaps with the last of the tile before it.
#pragma once

#include "sampleattn/cuda/epilogue.h"
#include "sampleattn/cuda/mask.h"
#include "sampleattn/sm90/config.h"

namespace sampleattn::sm90 {

// The two consumers take turns at issuing matrix products: while one computes its softmax, the other's run.
CUTE_DEVICE void wait_for_turn(int consumer) {
  asm volatile("bar.sync %0, 256;" ::"r"(consumer + 1) : "memory");
}
CUTE_DEVICE void pass_turn(int consumer) {
  asm volatile("bar.arrive %0, 256;" ::"r"((consumer ^ 1) + 1) : "memory");
}
CUTE_DEVICE void sync_consumer(int consumer) {
  asm volatile("bar.sync %0, 128;" ::"r"(consumer + 3) : "memory");
}

template <class Mma, class A, class B, class Accumulator>
CUTE_DEVICE void multiply(Mma& mma, A const& a, B const& b, Accumulator& accumulator, GMMA::ScaleOut first) {
  warpgroup_fence_operand(accumulator);
  warpgroup_arrive();
  mma.accumulate_ = first;
  CUTE_UNROLL
  for (int k = 0; k < size<2>(a); ++k) {
    gemm(mma, a(_, _, k), b(_, _, k), accumulator);
    mma.accumulate_ = GMMA::ScaleOut::One;
  }
  warpgroup_commit_batch();
}

// Zeroes the value rows of keys that no row sees: their weight is 0, but 0 * NaN is NaN.
template <class C>
CUTE_DEVICE void clear_invalid_values(typename C::Element* stage, KeyTile const& keys, Arguments const& args,
                                      int batch, int consumer) {
  int const slot = threadIdx.x % 128;
  if (slot < C::kKeys) {
    int const key = slot < kKeyRun ? keys.first_run + slot : keys.second_run + slot - kKeyRun;
    if (key < args.k_len && __ldg(args.key_segment + batch * args.key_segment_stride + key) < 0) {
      for (int chunk = 0; chunk < C::kHeadDimV; chunk += C::kChunkV) {
        auto* row = reinterpret_cast<uint4*>(stage + chunk * C::kKeys + slot * C::kChunkV);
        for (int i = 0; i < C::kChunkV / 8; ++i) row[i] = make_uint4(0, 0, 0, 0);
      }
    }
  }
  cutlass::arch::fence_view_async_shared();
  sync_consumer(consumer);
}

template <class C>
CUTE_DEVICE void consume(Arguments const& args, SharedStorage<C>& shared, int consumer) {
  using Element = typename C::Element;
  int const thread = threadIdx.x % 128;
  // The thread's first row of a tile. Needed rarely, so it is derived from the thread's number anew: head dim 256
  // has no register left to keep it in.
  auto own_row = [] {
    int number;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(number));
    number -= 128;
    return number / 32 * 16 + number % 32 / 4;
  };
  float const scale_log2 = args.scale * 1.4426950408889634f;

  Tensor query = local_tile(make_tensor(make_smem_ptr(shared.query.data()), typename C::LayoutQ{}),
                            Shape<_64, Int<C::kHeadDim>, Int<C::kQueryStages>>{}, make_coord(consumer, _0{}, _0{}));
  Tensor key = make_tensor(make_smem_ptr(shared.key.data()), typename C::LayoutK{});
  Tensor value = make_tensor(make_smem_ptr(shared.value.data()), typename C::LayoutV{});
  typename C::MmaQK mma_qk;
  typename C::MmaPV mma_pv;
  auto thread_qk = mma_qk.get_slice(thread);
  auto thread_pv = mma_pv.get_slice(thread);
  Tensor query_operand = thread_qk.partition_fragment_A(query);
  Tensor key_operand = thread_qk.partition_fragment_B(key);
  Tensor value_operand = thread_pv.partition_fragment_B(value);

  Tensor output = partition_fragment_C(mma_pv, Shape<_64, Int<C::kHeadDimV>>{});
  Tensor scores = partition_fragment_C(mma_qk, Shape<_64, Int<C::kKeys>>{});
  auto operand_layout = as_operand_a(scores.layout());
  Tensor weights = make_tensor<Element>(operand_layout);
  clear(output);

  Stage<C::kQueryStages> query_stage;
  Stage<C::kKeyStages> key_stage;
  Stage<C::kValueStages> value_stage;
  SoftmaxState state;
  float correction[2];

  auto fetch_tile = [&] {
    wait_full(shared.query_barrier[query_stage.index], query_stage.parity);
    return shared.query_tile[query_stage.index];
  };
  auto wait_for_keys = [&] {
    wait_full(shared.key_barrier[key_stage.index], key_stage.parity);
    return shared.key_tile[key_stage.index].flags;
  };
  auto wait_for_values = [&] { wait_full(shared.value_barrier[value_stage.index], value_stage.parity); };
  auto multiply_keys = [&] {
    multiply(mma_qk, query_operand(_, _, _, query_stage.index), key_operand(_, _, _, key_stage.index), scores,
             GMMA::ScaleOut::Zero);
  };
  auto clear_values = [&](int batch) {
    clear_invalid_values<C>(shared.value.data() + value_stage.index * C::kKeys * C::kHeadDimV,
                            shared.value_tile[value_stage.index], args, batch, consumer);
  };
  auto multiply_values = [&] {
    multiply(mma_pv, weights, value_operand(_, _, _, value_stage.index), output, GMMA::ScaleOut::One);
  };
  // The scores are complete: mask what must be masked and give the stages back.
  auto finish_scores = [&](QueryTile const& tile, int flags, bool last_of_tile) {
    warpgroup_fence_operand(scores);
    if (flags & (kMaskPositions | kMaskSegments)) [[unlikely]] {
      KeyTile const keys = shared.key_tile[key_stage.index];
      if (flags & kMaskPositions) mask_positions(scores, keys, args, tile.row + own_row());
      if (flags & kMaskSegments) mask_segments(scores, keys, args, tile.head / args.heads_q, tile.row + own_row());
    }
    release(shared.key_barrier[key_stage.index]);
    key_stage.advance();
    if (last_of_tile) {
      release(shared.query_barrier[query_stage.index]);
      query_stage.advance();
    }
  };
  auto finish_values = [&] {
    warpgroup_wait<0>();
    warpgroup_fence_operand(output);
    release(shared.value_barrier[value_stage.index]);
    value_stage.advance();
  };
  auto convert_weights = [&] {
    Tensor exponentials = make_tensor(scores.data(), operand_layout);
    auto* packed = reinterpret_cast<uint32_t*>(&weights(0));
    CUTE_UNROLL
    for (int i = 0; i < size(weights) / 2; ++i) {
      packed[i] = pack(exponentials(2 * i), exponentials(2 * i + 1), Element{});
    }
  };

  QueryTile tile = fetch_tile();
  if (tile.key_tiles == 0) return;
  if (consumer == 1) pass_turn(consumer);
  int remaining = tile.key_tiles;
  int flags = wait_for_keys();
  multiply_keys();
  warpgroup_wait<0>();
  finish_scores(tile, flags, --remaining == 0);
  update_softmax(state, scores, correction, scale_log2);
  convert_weights();

  while (true) {
    bool const last_of_tile = remaining == 0;
    QueryTile next = tile;
    if (last_of_tile) {
      next = fetch_tile();
      if (next.key_tiles == 0) break;
      remaining = next.key_tiles;
    }
    // Whatever needs waiting for is waited for before the turn, so that the turn is short.
    int const next_flags = wait_for_keys();
    wait_for_values();
    if (flags & kClearInvalidValues) [[unlikely]] clear_values(tile.head / args.heads_q);
    flags = next_flags;
    wait_for_turn(consumer);
    multiply_keys();
    multiply_values();
    pass_turn(consumer);
    warpgroup_wait<1>();
    finish_scores(next, flags, --remaining == 0);
    SoftmaxState const finished = state;
    if (last_of_tile) state = SoftmaxState{};
    bool const corrected = update_softmax(state, scores, correction, scale_log2);
    // The softmax overlaps with the product of the values. The fence and a wait in each branch instead of one
    // before keep the compiler from moving the softmax below the wait.
    warpgroup_fence_operand(scores);
    if (last_of_tile) [[unlikely]] {
      finish_values();
      write_tile<C>(output, finished, args, tile, own_row());
      clear(output);
      tile = next;
    } else {
      finish_values();
      if (corrected) [[unlikely]] rescale(output, correction);
    }
    convert_weights();
  }

  wait_for_values();
  if (flags & kClearInvalidValues) clear_values(tile.head / args.heads_q);
  wait_for_turn(consumer);
  multiply_values();
  pass_turn(consumer);
  finish_values();
  write_tile<C>(output, state, args, tile, own_row());
}

}  // namespace sampleattn::sm90
