// The sm_90a kernel: one persistent thread block a multiprocessor, a producer warp and two consumer warp groups.
#pragma once

#include "block_sparse_attention/sm90/consumer.h"
#include "block_sparse_attention/sm90/producer.h"
#include "cutlass/arch/reg_reconfig.h"

namespace sampleattn::sm90 {

template <class C>
__global__ void __launch_bounds__(C::kThreads, 1)
    block_sparse_attention(const __grid_constant__ Arguments args, const __grid_constant__ TensorMaps maps) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) unsigned char memory[];
  SharedStorage<C>& shared = *reinterpret_cast<SharedStorage<C>*>(memory);

  if (threadIdx.x == 0) {
    auto initialise = [](Barrier& barrier) {
      TransactionBarrier::init(&barrier.full, 1);
      TransactionBarrier::init(&barrier.empty, C::kConsumers * 4);
    };
    for (Barrier& barrier : shared.query_barrier) initialise(barrier);
    for (Barrier& barrier : shared.key_barrier) initialise(barrier);
    for (Barrier& barrier : shared.value_barrier) initialise(barrier);
    cutlass::arch::fence_barrier_init();
    prefetch_tma_descriptor(reinterpret_cast<TmaDescriptor const*>(&maps.query));
    prefetch_tma_descriptor(reinterpret_cast<TmaDescriptor const*>(&maps.key));
    prefetch_tma_descriptor(reinterpret_cast<TmaDescriptor const*>(&maps.value));
  }
  __syncthreads();

  if (threadIdx.x < 128) {
    cutlass::arch::warpgroup_reg_dealloc<C::kProducerRegisters>();
    if (threadIdx.x < 32) {
      Producer<C>{args, maps, shared}.run();
    } else {
      write_empty_tiles<C>(args);
    }
  } else {
    cutlass::arch::warpgroup_reg_alloc<C::kConsumerRegisters>();
    consume<C>(args, shared, cutlass::canonical_warp_group_idx() - 1);
  }
#endif
}

}  // namespace sampleattn::sm90
