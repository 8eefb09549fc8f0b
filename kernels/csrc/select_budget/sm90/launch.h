// Host side of the kernel that scores sampled rows: the tensor map and the launch.
#pragma once

#include "select_budget/sm90/kernel.h"
#include "select_budget/sm90/score.h"
#include "shared/sm90/tensor_map.h"
#include "shared/cuda/launch.h"

namespace sampleattn::sm90::budget {

constexpr int kRounds = 8;  // thread blocks a multiprocessor, at least; half of them have work

template <class C>
Error launch(Arguments args, int multiprocessors, cudaStream_t stream) {
  CUtensorMap keys;
  Error const error = make_tensor_map(keys, args.key, args.key_strides, args.batch, args.kv_heads, args.kv_len,
                                      C::kHeadDim, kBlock, C::kChunk, args.dtype);
  if (error) return error;
  constexpr int kBytes = sizeof(SharedStorage<C>);
  static_assert(kBytes <= kMostSharedBytes, "more shared memory than a thread block of sm_90 can have");
  // Shorter ranges of keys where there are few rows: every multiprocessor gets a few, so that all end together.
  args.range_blocks = kMostRangeBlocks;
  while (args.range_blocks > kLeastRangeBlocks && item_count(args, C::kConsumers) < kRounds * multiprocessors) {
    args.range_blocks /= 2;
  }
  int const items = item_count(args, C::kConsumers);
  if (items == 0) return {};
  return launch_kernel(&score_sampled_rows<C>, items, C::kThreads, kBytes, stream, args, keys);
}

template <int kHeadDim>
Error score(Arguments const& args, int multiprocessors, cudaStream_t stream) {
  return args.dtype == DataType::kBFloat16
             ? launch<Config<cutlass::bfloat16_t, kHeadDim>>(args, multiprocessors, stream)
             : launch<Config<cutlass::half_t, kHeadDim>>(args, multiprocessors, stream);
}

}  // namespace sampleattn::sm90::budget
