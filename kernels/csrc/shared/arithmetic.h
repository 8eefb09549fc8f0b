// Index arithmetic that kernels on a device, kernels on a CPU and the tests on a host share.
#pragma once

#include <cstdint>
#include <type_traits>

#ifdef __CUDACC__
#define SAMPLEATTN_DEVICE __host__ __device__ inline
#else
#include <algorithm>
#define SAMPLEATTN_DEVICE inline
#endif

namespace sampleattn {

#ifndef __CUDACC__
using std::max, std::min;
#endif

template <class Int>
SAMPLEATTN_DEVICE constexpr Int ceil_div(Int a, std::type_identity_t<Int> b) {
  return (a + b - 1) / b;
}
template <class Int>
SAMPLEATTN_DEVICE constexpr Int floor_div(Int a, std::type_identity_t<Int> b) {
  return a / b - (a % b < 0);
}
template <class Int>
SAMPLEATTN_DEVICE constexpr Int round_up(Int a, std::type_identity_t<Int> b) {
  return ceil_div(a, b) * b;
}

// Words of a row of a block mask, as kernels/shared/shapes.py has: never one, a size that torch.compile specialises on.
template <class Int>
SAMPLEATTN_DEVICE constexpr Int mask_words(Int key_blocks) {
  return key_blocks > 64 ? ceil_div(key_blocks, 32) : 2;
}

}  // namespace sampleattn
