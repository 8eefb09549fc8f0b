// A consumer of the kernel for head dim 512: the scores of one run of every key tile, and half of the output's columns.
// The two of a thread block have the same rows and take every step together, since each multiplies the other's weights.
#pragma once

#include "block_sparse_attention/sm90/consumer.h"
#include "block_sparse_attention/sm90/wide_config.h"

namespace sampleattn::sm90 {

template <class C>
struct WideConsumer {
  using Element = typename C::Element;
  using Scores = decltype(partition_fragment_C(typename C::MmaQK{}, Shape<Int<C::kRows>, Int<kKeyRun>>{}));
  using Output = decltype(partition_fragment_C(typename C::MmaPV{}, Shape<Int<C::kRows>, Int<C::kColumns>>{}));

  Arguments const& args;
  WideSharedStorage<C>& shared;
  int const consumer, rank;  // rank: of this thread block in its cluster
  float const scale_log2 = args.scale * 1.4426950408889634f;

  Scores scores;
  Output output;
  SoftmaxState state;
  int first_key, flags;  // of the run that scores were computed of last, and of its key tile
  Stage<1> query_stage;
  Stage<C::kStages> stage;
  int held = -1;  // the stage that a product may still read

  // The consumers' common barrier.
  CUTE_DEVICE static void sync() { asm volatile("bar.sync 1, 256;" ::: "memory"); }

  // The thread's first row of the thread block.
  CUTE_DEVICE static int own_row() { return threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4; }

  CUTE_DEVICE void run() {
    while (true) {
      wait_full(shared.query_barrier, query_stage.parity);
      QueryTile const tile = read_tile(shared.query_tile);
      if (tile.key_tiles == 0) return;
      clear(output);
      state = SoftmaxState{};
      // Values are multiplied right before the next key tile's scores: ptxas must see what is under way end in a step.
      begin(tile, tile.key_tiles == 1);
      CUTE_NO_UNROLL
      for (int remaining = tile.key_tiles - 1; remaining > 0; --remaining) {
        multiply_values(tile);
        begin(tile, remaining == 1);
      }
      multiply_values(tile);
      query_stage.advance();
      finish(tile);
    }
  }

  // Scores and weights of the next key tile.
  CUTE_DEVICE void begin(QueryTile const& tile, bool last) {
    multiply_keys();
    if (last) release(shared.query_barrier);
    if (flags & (kMaskPositions | kMaskSegments)) [[unlikely]] {
      KeyTile const keys{first_key, kNoRun, flags};
      int const row = tile.row + rank * C::kRows + own_row();
      if (flags & kMaskPositions) mask_positions(scores, keys, args, row);
      if (flags & kMaskSegments) mask_segments(scores, keys, args, tile.head / args.q_heads, row);
    }
    soften();
    share_weights();
  }

  // The products of a stage's part are under way: those of the part before it are done, and it goes back.
  CUTE_DEVICE void advance() {
    warpgroup_wait<1>();
    give_back();
    held = stage.index;
    stage.advance();
  }

  // The thread blocks fill each other's stages, so both must know that it is empty here.
  CUTE_DEVICE void give_back() {
    if (held < 0) return;
    __syncwarp();
    int const lane = threadIdx.x % 32;
    if (lane < C::kCluster) TransactionBarrier::arrive(&shared.barrier[consumer][held].empty, rank ^ lane, 1);
    held = -1;
  }

  // Scores of this consumer's run of the next key tile.
  CUTE_DEVICE void multiply_keys() {
    Tensor query = make_tensor(make_smem_ptr(shared.query.data()), typename C::LayoutQ{});
    Tensor key = make_tensor(make_smem_ptr(shared.stages[consumer].data()), typename C::LayoutK{});
    typename C::MmaQK mma;
    auto slice = mma.get_slice(threadIdx.x % 128);
    Tensor query_operand = slice.partition_fragment_A(query);
    Tensor key_operand = slice.partition_fragment_B(key);
    CUTE_NO_UNROLL
    for (int part = 0; part < C::kHeadDim / C::kKeyColumns; ++part) {
      wait_full(shared.barrier[consumer][stage.index], stage.parity);
      if (part == 0) {
        KeyTile const& keys = shared.key_tile[consumer][stage.index];
        first_key = agree(read_alone(keys.first_run));
        flags = agree(read_alone(keys.flags));
      }
      multiply(mma, query_operand(_, _, _, part), key_operand(_, _, _, stage.index), scores,
               part == 0 ? GMMA::ScaleOut::Zero : GMMA::ScaleOut::One);
      advance();
    }
    warpgroup_wait<0>();
    warpgroup_fence_operand(scores);
    give_back();
  }

  // Turns scores into exponentials, relative to offsets that both consumers agree on.
  CUTE_DEVICE void soften() {
    auto rows = as_rows(scores);
    float largest[2], correction[2];
    row_maximum(rows, largest);
    if (threadIdx.x % 4 == 0) {
      shared.largest[consumer][own_row()] = largest[0];
      shared.largest[consumer][own_row() + 8] = largest[1];
    }
    sync();
    bool moved = false;
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      float const before = state.offset[r];
      float const maximum = fmaxf(largest[r], shared.largest[consumer ^ 1][own_row() + 8 * r]) * scale_log2;
      if (!(maximum - before <= kSlack)) state.offset[r] = maximum;
      moved |= state.offset[r] != before;
      correction[r] = before == -INFINITY ? 1.f : exp2_approximate(before - state.offset[r]);
    }
    if (__any_sync(0xffffffffu, moved)) {
      warpgroup_fence_operand(output);
      rescale(output, correction);
      CUTE_UNROLL
      for (int r = 0; r < 2; ++r) state.sum[r] *= correction[r];
    }
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      // A row that has seen no key has scores of -inf; zero in the offset's place avoids inf - inf.
      float const offset = state.offset[r] == -INFINITY ? 0.f : state.offset[r];
      CUTE_UNROLL
      for (int c = 0; c < size<1>(rows); ++c) {
        rows(r, c) = exp2_approximate(fmaf(rows(r, c), scale_log2, -offset));
        state.sum[r] += rows(r, c);
      }
    }
  }

  // Both consumers multiply the weights of both.
  CUTE_DEVICE void share_weights() {
    // As C::LayoutP has it: rows of 128 bytes, in which the row's number permutes the units of 16 bytes.
    auto* words = reinterpret_cast<uint32_t*>(shared.weights.data()) + consumer * C::kRows * kKeyRun / 2;
    int const lane = threadIdx.x % 32, own = own_row() * kKeyRun / 2 + lane / 4 * 4 + lane % 4;
    auto rows = as_rows(scores);
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      CUTE_UNROLL
      for (int unit = 0; unit < kKeyRun / 8; ++unit) {
        words[(own ^ unit * 4) + r * 8 * kKeyRun / 2] = pack(rows(r, 2 * unit), rows(r, 2 * unit + 1), Element{});
      }
    }
    cutlass::arch::fence_view_async_shared();
    sync();
  }

  CUTE_DEVICE void multiply_values(QueryTile const& tile) {
    Tensor weights = make_tensor(make_smem_ptr(shared.weights.data()), typename C::LayoutP{});
    Tensor value = make_tensor(make_smem_ptr(shared.stages[consumer].data()), typename C::LayoutV{});
    typename C::MmaPV mma;
    auto slice = mma.get_slice(threadIdx.x % 128);
    Tensor weights_operand = slice.partition_fragment_A(weights);
    Tensor value_operand = slice.partition_fragment_B(value);
    CUTE_NO_UNROLL
    for (int part = 0; part < C::kKeys / C::kValueKeys; ++part) {
      wait_full(shared.barrier[consumer][stage.index], stage.parity);
      if (flags & kClearInvalidValues) [[unlikely]] {
        clear_invalid_values<WideValues<C>>(shared.stages[consumer].data() + stage.index * C::kStageElements,
                                            read_tile(shared.key_tile[consumer][stage.index]), args,
                                            tile.head / args.q_heads, consumer);
      }
      multiply(mma, weights_operand, value_operand(_, _, _, stage.index), output, GMMA::ScaleOut::One,
               part * size<2>(value_operand));
      advance();
    }
  }

  // The last products of a tile, the sums of both consumers, and the output.
  CUTE_DEVICE void finish(QueryTile const& tile) {
    warpgroup_wait<0>();
    warpgroup_fence_operand(output);
    give_back();
    bool const writes = threadIdx.x % 4 == 0;  // one thread of those that hold a row
    float own[2];
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      own[r] = quad_sum(state.sum[r]);
      if (writes) shared.sum[consumer][own_row() + 8 * r] = own[r];
    }
    sync();
    CUTE_UNROLL
    for (int r = 0; r < 2; ++r) {
      state.sum[r] = writes ? own[r] + shared.sum[consumer ^ 1][own_row() + 8 * r] : 0.f;
    }
    write_tile<C>(output, state, args, tile, rank * C::kRows + own_row(), consumer * C::kColumns);
  }
};

}  // namespace sampleattn::sm90
