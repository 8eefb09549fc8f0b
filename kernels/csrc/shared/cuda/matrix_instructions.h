// Products of a warp: ldmatrix and mma.m16n8k16. Which elements a lane hands over: matrix_layout.h.
#pragma once

#include <cute/tensor.hpp>

#include "cutlass/numeric_types.h"

namespace sampleattn {

CUTE_DEVICE uint32_t shared_address(void const* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

CUTE_DEVICE void load_matrices(uint32_t (&words)[4], void const* shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared_address(shared))
               : "memory");
}

// c[0..3] += a (16 x 16) times b (16 x 8).
CUTE_DEVICE void multiply(float* c, uint32_t const* a, uint32_t b0, uint32_t b1, cutlass::bfloat16_t) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

CUTE_DEVICE void multiply(float* c, uint32_t const* a, uint32_t b0, uint32_t b1, cutlass::half_t) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace sampleattn
