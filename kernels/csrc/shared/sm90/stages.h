// Rings of stages in shared memory, which one thread fills by bulk copies and warps empty.
#pragma once

#include <cute/tensor.hpp>

#include "cutlass/arch/barrier.h"

namespace sampleattn::sm90 {

struct Barrier {
  uint64_t full, empty;
};

// A position in a ring of stages, with the parity that its barriers show once it is reached.
template <int kStages>
struct Stage {
  int index = 0;
  uint32_t parity = 0;

  CUTE_DEVICE void advance() {
    if (++index == kStages) {
      index = 0;
      parity ^= 1;
    }
  }
};

using TransactionBarrier = cutlass::arch::ClusterTransactionBarrier;

CUTE_DEVICE void wait_full(Barrier const& barrier, uint32_t parity) {
  TransactionBarrier::ValueType const* full = &barrier.full;
  TransactionBarrier::wait(full, parity);
}

CUTE_DEVICE void wait_empty(Barrier const& barrier, uint32_t parity) {
  TransactionBarrier::ValueType const* empty = &barrier.empty;
  TransactionBarrier::wait(empty, parity ^ 1);
}

// One arrival a warp; every lane has finished reading.
CUTE_DEVICE void release(Barrier const& barrier) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) TransactionBarrier::arrive(&barrier.empty);
}

}  // namespace sampleattn::sm90
