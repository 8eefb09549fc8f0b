// One head dim's kernels: both data types and both widths of key blocks.
#pragma once

#include "sampleattn/sm90/forward.h"
#include "sampleattn/sm90/launch.h"

namespace sampleattn::sm90 {

template <int kHeadDim, int kHeadDimV, int... kTileAndStages>
Error launch_all(Arguments const& args, int multiprocessors, cudaStream_t stream) {
  using BFloat16 = cutlass::bfloat16_t;
  using Float16 = cutlass::half_t;
  if (args.block_k == 128) {
    return args.dtype == DataType::kBFloat16
               ? launch<Config<BFloat16, kHeadDim, kHeadDimV, 128, kTileAndStages...>>(args, multiprocessors, stream)
               : launch<Config<Float16, kHeadDim, kHeadDimV, 128, kTileAndStages...>>(args, multiprocessors, stream);
  }
  return args.dtype == DataType::kBFloat16
             ? launch<Config<BFloat16, kHeadDim, kHeadDimV, 64, kTileAndStages...>>(args, multiprocessors, stream)
             : launch<Config<Float16, kHeadDim, kHeadDimV, 64, kTileAndStages...>>(args, multiprocessors, stream);
}

// The kernels that take dropped blocks by their means; key blocks of 128 only.
template <int kHeadDim, int kHeadDimV, int... kTileAndStages>
Error launch_with_means(Arguments const& args, int multiprocessors, cudaStream_t stream) {
  using BFloat16 = cutlass::bfloat16_t;
  using Float16 = cutlass::half_t;
  if (args.block_k != 128) return {"means are taken of key blocks of 128 only", args.block_k};
  return args.dtype == DataType::kBFloat16
             ? launch<WithMeans<Config<BFloat16, kHeadDim, kHeadDimV, 128, kTileAndStages...>>>(args, multiprocessors,
                                                                                                stream)
             : launch<WithMeans<Config<Float16, kHeadDim, kHeadDimV, 128, kTileAndStages...>>>(args, multiprocessors,
                                                                                               stream);
}

}  // namespace sampleattn::sm90
