// The sm_90a kernel for head dim 512: persistent clusters of two thread blocks, one thread block a multiprocessor, each
// of a producer warp and two consumer warp groups.
#pragma once

#include "block_sparse_attention/sm90/kernel.h"
#include "block_sparse_attention/sm90/wide_consumer.h"
#include "block_sparse_attention/sm90/wide_producer.h"

namespace sampleattn::sm90 {

template <class C>
__global__ void __cluster_dims__(C::kCluster, 1, 1) __launch_bounds__(C::kThreads, 1)
    wide_block_sparse_attention(const __grid_constant__ Arguments args, const __grid_constant__ TensorMaps maps) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) unsigned char memory[];
  WideSharedStorage<C>& shared = *reinterpret_cast<WideSharedStorage<C>*>(memory);
  int const rank = int(block_rank_in_cluster());

  if (threadIdx.x == 0) {
    TransactionBarrier::init(&shared.query_barrier.full, 1);
    TransactionBarrier::init(&shared.query_barrier.empty, C::kConsumers * 4);
    for (auto& stages : shared.barrier) {
      for (Barrier& barrier : stages) {
        TransactionBarrier::init(&barrier.full, 1);
        TransactionBarrier::init(&barrier.empty, C::kCluster * 4);
      }
    }
    cutlass::arch::fence_barrier_init();
    prefetch_tma_descriptor(reinterpret_cast<TmaDescriptor const*>(&maps.query));
    prefetch_tma_descriptor(reinterpret_cast<TmaDescriptor const*>(&maps.key));
    prefetch_tma_descriptor(reinterpret_cast<TmaDescriptor const*>(&maps.value));
  }
  __syncwarp();
  cluster_sync();

  if (threadIdx.x < 128) {
    cutlass::arch::warpgroup_reg_dealloc<C::kProducerRegisters>();
    if (threadIdx.x < 32) {
      WideProducer<C>{args, maps, shared, rank}.run();
    } else {
      write_empty_tiles<C>(args);
    }
  } else {
    cutlass::arch::warpgroup_reg_alloc<C::kConsumerRegisters>();
    WideConsumer<C>{args, shared, cutlass::canonical_warp_group_idx() - 1, rank}.run();
  }
  // The other thread block may still fill stages of this one, and tell it that its own are empty.
  __syncwarp();
  cluster_sync();
#endif
}

}  // namespace sampleattn::sm90
