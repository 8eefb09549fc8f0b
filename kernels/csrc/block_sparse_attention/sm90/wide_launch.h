// Host side of the kernel for head dim 512: tensor maps and the launch.
#pragma once

#include <algorithm>

#include "block_sparse_attention/sm90/wide_kernel.h"
#include "shared/sm90/tensor_map.h"
#include "shared/cuda/launch.h"

namespace sampleattn::sm90 {

template <class C>
Error launch_wide(Arguments const& args, int multiprocessors, cudaStream_t stream) {
  if (args.rest_share) return {"no kernel that adds a rest for this head dim", args.head_dim};
  TensorMaps maps;
  Error error = make_tensor_map(maps.query, args.query, args.query_strides, args.batch, args.q_heads, args.q_len,
                                C::kHeadDim, C::kRows, C::kChunk, args.dtype);
  if (!error) {
    error = make_tensor_map(maps.key, args.key, args.key_strides, args.batch, args.kv_heads, args.kv_len, C::kHeadDim,
                            kKeyRun / C::kCluster, C::kChunk, args.dtype);
  }
  if (!error) {
    error = make_tensor_map(maps.value, args.value, args.value_strides, args.batch, args.kv_heads, args.kv_len,
                            C::kHeadDimV, C::kValueKeys, C::kChunk, args.dtype);
  }
  if (error) return error;

  constexpr int kBytes = sizeof(WideSharedStorage<C>);
  static_assert(kBytes <= kMostSharedBytes, "more shared memory than a thread block of sm_90 can have");
  int const clusters = std::min(args.tiles(), std::max(multiprocessors / C::kCluster, 1));
  return launch_kernel(&wide_block_sparse_attention<C>, clusters * C::kCluster, C::kThreads, kBytes, stream, args,
                       maps);
}

}  // namespace sampleattn::sm90
