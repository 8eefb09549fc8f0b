// One head dim's kernels: both data types and both widths of key blocks.
#pragma once

#include "block_sparse_attention/sm90/forward.h"
#include "block_sparse_attention/sm90/launch.h"
#include "block_sparse_attention/sm90/wide_launch.h"

namespace sampleattn::sm90 {

// Keys of a tile, and stages of queries, keys and values: what shared memory has room for.
struct Tiling {
  int keys, query_stages, key_stages, value_stages;
};

constexpr Tiling tiling(int head_dim, int value_head_dim) {
  if (head_dim <= 64) return {128, 2, 4, 4};
  if (head_dim <= 96) return {128, 2, 3, 3};
  if (head_dim <= 128) return {128, 2, 2, 2};
  if (value_head_dim <= 128) return {128, 1, 2, 2};
  if (head_dim <= 192) return {64, 2, 2, 2};
  return {64, 1, 2, 2};
}

template <class Element, int kHeadDim, int kHeadDimV, int kBlockK>
using ConfigOf = Config<Element, kHeadDim, kHeadDimV, kBlockK, tiling(kHeadDim, kHeadDimV).keys,
                        tiling(kHeadDim, kHeadDimV).query_stages, tiling(kHeadDim, kHeadDimV).key_stages,
                        tiling(kHeadDim, kHeadDimV).value_stages>;

template <class Element, int kHeadDim, int kHeadDimV, int kBlockK>
Error launch_one(Arguments const& args, int multiprocessors, cudaStream_t stream) {
  if constexpr (kHeadDim <= 256) {
    return launch<ConfigOf<Element, kHeadDim, kHeadDimV, kBlockK>>(args, multiprocessors, stream);
  } else {
    static_assert(kHeadDim == 512 && kHeadDimV == 512);
    return launch_wide<WideConfig<Element, kBlockK>>(args, multiprocessors, stream);
  }
}

template <int kHeadDim, int kHeadDimV>
Error forward(Arguments const& args, int multiprocessors, cudaStream_t stream) {
  using BFloat16 = cutlass::bfloat16_t;
  using Float16 = cutlass::half_t;
  if (args.block_k == 128) {
    return args.dtype == DataType::kBFloat16
               ? launch_one<BFloat16, kHeadDim, kHeadDimV, 128>(args, multiprocessors, stream)
               : launch_one<Float16, kHeadDim, kHeadDimV, 128>(args, multiprocessors, stream);
  }
  return args.dtype == DataType::kBFloat16
             ? launch_one<BFloat16, kHeadDim, kHeadDimV, 64>(args, multiprocessors, stream)
             : launch_one<Float16, kHeadDim, kHeadDimV, 64>(args, multiprocessors, stream);
}

// Key blocks of 128 only.
template <int kHeadDim, int kHeadDimV>
Error forward_with_means(Arguments const& args, int multiprocessors, cudaStream_t stream) {
  using BFloat16 = cutlass::bfloat16_t;
  using Float16 = cutlass::half_t;
  if (args.block_k != 128) return {"means are taken of key blocks of 128 only", args.block_k};
  return args.dtype == DataType::kBFloat16
             ? launch<WithMeans<ConfigOf<BFloat16, kHeadDim, kHeadDimV, 128>>>(args, multiprocessors, stream)
             : launch<WithMeans<ConfigOf<Float16, kHeadDim, kHeadDimV, 128>>>(args, multiprocessors, stream);
}

}  // namespace sampleattn::sm90
