// The instructions of sm_80 that the kernel is made of.
#pragma once

#include <cute/tensor.hpp>

#include "sampleattn/cuda/epilogue.h"

namespace sampleattn::sm80 {

CUTE_DEVICE uint32_t shared_address(void const* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Copies 16 bytes to shared memory in the background, or writes zeros there if not `read`.
CUTE_DEVICE void copy_vector(void* shared, void const* global, bool read) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(read ? 16 : 0)
               : "memory");
}

// Waits for this thread's copies; another thread's are visible after a barrier.
CUTE_DEVICE void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

CUTE_DEVICE void load_matrices(uint32_t (&words)[4], void const* shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared_address(shared))
               : "memory");
}

CUTE_DEVICE void load_matrices_transposed(uint32_t (&words)[4], void const* shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
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

// One lane's view of the instructions, for products.h.
template <class Element>
struct Warp {
  using Word = uint32_t;
  using Float = float;
  int lane;

  template <class Offset>
  CUTE_DEVICE void load(Word (&words)[4], Element const* tile, Offset offset) const {
    load_matrices(words, tile + offset(lane));
  }
  template <class Offset>
  CUTE_DEVICE void load_transposed(Word (&words)[4], Element const* tile, Offset offset) const {
    load_matrices_transposed(words, tile + offset(lane));
  }
  CUTE_DEVICE void multiply(Float* c, Word const* a, Word b0, Word b1) const {
    sm80::multiply(c, a, b0, b1, Element{});
  }
  CUTE_DEVICE Word pack_pair(Float low, Float high) const { return pack(low, high, Element{}); }
};

}  // namespace sampleattn::sm80
