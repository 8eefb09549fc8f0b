// Issuing the matrix products of one warp group.
#pragma once

#include <cute/tensor.hpp>

namespace sampleattn::sm90 {

using namespace cute;

// accumulator (+)= a b^T over the columns of b, asynchronously; `first` says whether the accumulator's values count,
// `begin` where in a they begin, in steps of the instruction.
template <class Mma, class A, class B, class Accumulator>
CUTE_DEVICE void multiply(Mma& mma, A const& a, B const& b, Accumulator& accumulator, GMMA::ScaleOut first,
                          int begin = 0) {
  warpgroup_fence_operand(accumulator);
  warpgroup_arrive();
  mma.accumulate_ = first;
  CUTE_UNROLL
  for (int k = 0; k < size<2>(b); ++k) {
    gemm(mma, a(_, _, begin + k), b(_, _, k), accumulator);
    mma.accumulate_ = GMMA::ScaleOut::One;
  }
  warpgroup_commit_batch();
}

}  // namespace sampleattn::sm90
