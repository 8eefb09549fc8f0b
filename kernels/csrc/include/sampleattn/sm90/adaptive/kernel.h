// The sm_90a kernel: one persistent thread block a multiprocessor, a producer and four consumer warp groups.
#pragma once

#include "cutlass/arch/reg_reconfig.h"
#include "sampleattn/sm90/adaptive/consumer.h"
#include "sampleattn/sm90/adaptive/producer.h"

namespace sampleattn::sm90::adaptive {

template <class C>
__global__ void __launch_bounds__(C::kThreads, 1)
    select_adaptive(const __grid_constant__ Arguments args, const __grid_constant__ TensorMaps maps) {
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
    cutlass::arch::fence_barrier_init();
    prefetch_tma_descriptor(reinterpret_cast<TmaDescriptor const*>(&maps.query));
    prefetch_tma_descriptor(reinterpret_cast<TmaDescriptor const*>(&maps.key));
    prefetch_tma_descriptor(reinterpret_cast<TmaDescriptor const*>(&maps.representatives));
  }
  __syncthreads();

  // The register file gives five warps a scheduler 96 registers each; the producer needs few of its own.
  if (threadIdx.x < 128) {
    cutlass::arch::warpgroup_reg_dealloc<32>();
    if (threadIdx.x == 0) Producer<C>{args, maps, shared}.run();
  } else {
    cutlass::arch::warpgroup_reg_alloc<112>();
    Consumer<C>{args, shared, cutlass::canonical_warp_group_idx() - 1}.run();
  }
#endif
}

}  // namespace sampleattn::sm90::adaptive
