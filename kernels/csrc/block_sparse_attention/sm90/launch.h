// Host side of the sm_90a kernel: tensor maps and the launch.
#pragma once

#include "block_sparse_attention/sm90/kernel.h"
#include "shared/sm90/tensor_map.h"
#include "shared/cuda/launch.h"

namespace sampleattn::sm90 {

template <class C>
Error launch(Arguments const& args, int multiprocessors, cudaStream_t stream) {
  constexpr int kBoxKeys = C::kKeys < C::kBlockK ? C::kKeys : C::kBlockK;
  TensorMaps maps;
  Error error = make_tensor_map(maps.query, args.query, args.query_strides, args.batch, args.q_heads, args.q_len,
                                C::kHeadDim, kTileRows, C::kChunk, args.dtype);
  if (!error) {
    error = make_tensor_map(maps.key, args.key, args.key_strides, args.batch, args.kv_heads, args.kv_len, C::kHeadDim,
                            kBoxKeys, C::kChunk, args.dtype);
  }
  if (!error) {
    error = make_tensor_map(maps.value, args.value, args.value_strides, args.batch, args.kv_heads, args.kv_len,
                            C::kHeadDimV, kBoxKeys, C::kChunkV, args.dtype);
  }
  if constexpr (C::kTakesMeans) {
    int64_t const blocks = args.key_blocks();
    auto strides = [&](int64_t dim) { return Strides{args.kv_heads * blocks * dim, blocks * dim, dim}; };
    if (!error) {
      error = make_tensor_map(maps.mean_key, args.mean_key, strides(C::kHeadDim), args.batch, args.kv_heads,
                              int(blocks), C::kHeadDim, kBoxKeys, C::kChunk, args.dtype);
    }
    if (!error) {
      error = make_tensor_map(maps.mean_value, args.mean_value, strides(C::kHeadDimV), args.batch, args.kv_heads,
                              int(blocks), C::kHeadDimV, kBoxKeys, C::kChunkV, args.dtype);
    }
  }
  if (error) return error;

  constexpr int kBytes = sizeof(SharedStorage<C>);
  static_assert(kBytes <= kMostSharedBytes, "more shared memory than a thread block of sm_90 can have");
  int const blocks = args.tiles() < multiprocessors ? args.tiles() : multiprocessors;
  return launch_kernel(&block_sparse_attention<C>, blocks, C::kThreads, kBytes, stream, args, maps);
}

}  // namespace sampleattn::sm90
