// The rows of a wgmma's accumulator: a thread holds parts of two of each warp's 16, and its quad the rest of them.
#pragma once

#include <cute/tensor.hpp>

namespace sampleattn {

using namespace cute;

CUTE_DEVICE float exp2_approximate(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// The accumulator ((2, 2, N/8), 1, 1) as (rows of this thread, its columns).
template <class Tensor>
CUTE_DEVICE auto as_rows(Tensor& accumulator) {
  auto layout = accumulator.layout();
  return make_tensor(accumulator.data(),
                     make_layout(get<0, 1>(layout), make_layout(get<0, 0>(layout), get<0, 2>(layout))));
}

// The layout of an accumulator as the register operand A of the next product: ((2, 2, 2), 1, N/16).
template <class Layout>
CUTE_DEVICE auto as_operand_a(Layout layout) {
  auto columns = logical_divide(get<0, 2>(layout), cute::Tile<_2>{});
  return make_layout(make_layout(get<0, 0>(layout), get<0, 1>(layout), get<0, 0>(columns)), get<1>(layout),
                     get<0, 1>(columns));
}

CUTE_DEVICE float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
}

CUTE_DEVICE float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 2);
  return x + __shfl_xor_sync(0xffffffffu, x, 1);
}

}  // namespace sampleattn
