// Host side of the sm_80 kernel: one head dim's kernels for both data types.
#pragma once

#include <cuda_runtime.h>

#include "sampleattn/sm80/forward.h"
#include "sampleattn/sm80/kernel.h"

namespace sampleattn::sm80 {

template <class C>
Error launch(Arguments const& args, cudaStream_t stream) {
  static_assert(C::kSharedBytes == shared_bytes(C::kHeadDim, C::kHeadDimV));
  auto* kernel = &block_sparse_attention<C>;
  cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, C::kSharedBytes);
  if (status == cudaSuccess) {
    kernel<<<args.tiles(), C::kThreads, C::kSharedBytes, stream>>>(args);
    status = cudaGetLastError();
  }
  return to_error(status);
}

template <int kHeadDim, int kHeadDimV>
Error launch_either(Arguments const& args, cudaStream_t stream) {
  return args.dtype == DataType::kBFloat16 ? launch<Config<cutlass::bfloat16_t, kHeadDim, kHeadDimV>>(args, stream)
                                           : launch<Config<cutlass::half_t, kHeadDim, kHeadDimV>>(args, stream);
}

}  // namespace sampleattn::sm80
