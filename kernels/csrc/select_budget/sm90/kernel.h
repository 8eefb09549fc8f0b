// The sm_90a kernel: a producer thread and two or four warp groups, each with 64 sampled rows, that share key blocks.
#pragma once

#include "cute/arch/copy_sm90_tma.hpp"
#include "cutlass/arch/reg_reconfig.h"
#include "select_budget/sm90/consumer.h"

namespace sampleattn::sm90::budget {

// Asks for the item's key blocks, in the consumers' order.
template <class C>
CUTE_DEVICE void load_keys(CUtensorMap const& map, SharedStorage<C>& shared, Item const& item) {
  Stage<C::kStages> stage;
  for (int step = 0; step < item.end - item.begin; ++step) {
    Barrier& barrier = shared.key_barrier[stage.index];
    wait_empty(barrier, stage.parity);
    TransactionBarrier::arrive_and_expect_tx(&barrier.full, C::kKeyBytes);
    CUTE_UNROLL
    for (int column = 0; column < C::kHeadDim; column += C::kChunk) {
      SM90_TMA_LOAD_4D::copy(&map, &barrier.full, static_cast<uint64_t>(TMA::CacheHintSm90::EVICT_LAST),
                             shared.key.data() + stage.index * C::kKeyElements + column * kBlock, column,
                             block_of_step(item, step) * kBlock, item.kv_head, item.batch);
    }
    stage.advance();
  }
}

template <class C>
__global__ void __launch_bounds__(C::kThreads, 1)
    score_sampled_rows(const __grid_constant__ Arguments args, const __grid_constant__ CUtensorMap keys) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) unsigned char memory[];
  SharedStorage<C>& shared = *reinterpret_cast<SharedStorage<C>*>(memory);
  Item const item = locate_item(args, blockIdx.x, C::kConsumers);
  if (item.begin >= item.end) return;

  if (threadIdx.x == 0) {
    for (Barrier& barrier : shared.key_barrier) {
      TransactionBarrier::init(&barrier.full, 1);
      TransactionBarrier::init(&barrier.empty, C::kConsumers * 4);
    }
    cutlass::arch::fence_barrier_init();
    prefetch_tma_descriptor(reinterpret_cast<TmaDescriptor const*>(&keys));
  }
  __syncthreads();

  if (threadIdx.x < 128) {
    cutlass::arch::warpgroup_reg_dealloc<C::kProducerRegisters>();
    if (threadIdx.x == 0) load_keys<C>(keys, shared, item);
  } else {
    cutlass::arch::warpgroup_reg_alloc<C::kConsumerRegisters>();
    Consumer<C>{args, shared, item, cutlass::canonical_warp_group_idx() - 1}.run();
  }
#endif
}

}  // namespace sampleattn::sm90::budget
