// Launching a kernel that asks for its shared memory at run time.
#pragma once

#include "shared/cuda/error.h"

namespace sampleattn {

constexpr int kMostSharedBytes = 232448;  // that a thread block of sm_90 can have

template <class... Parameters, class... Values>
Error launch_kernel(void (*kernel)(Parameters...), dim3 grid, int threads, int shared_bytes, cudaStream_t stream,
                    Values const&... values) {
  cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (status == cudaSuccess) {
    kernel<<<grid, threads, shared_bytes, stream>>>(values...);
    status = cudaGetLastError();
  }
  return to_error(status);
}

}  // namespace sampleattn
