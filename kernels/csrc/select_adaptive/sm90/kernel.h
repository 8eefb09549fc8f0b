// The sm_90a kernel: one persistent thread block a multiprocessor, a producer warp, three
// writer warps and four consumer warp groups.
#pragma once

#include "cutlass/arch/reg_reconfig.h"
#include "select_adaptive/sm90/consumer.h"
#include "select_adaptive/sm90/producer.h"
#include "select_adaptive/sm90/writer.h"

namespace sampleattn::sm90::adaptive {

template <class C>
__global__ void __launch_bounds__(C::kThreads, 1)
    select_adaptive(const __grid_constant__ Arguments args, const __grid_constant__ TensorMaps maps) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) unsigned char memory[];
  SharedStorage<C>& shared = *reinterpret_cast<SharedStorage<C>*>(memory);

  if (threadIdx.x == 0) {
    initialise_tiles<C>(shared, maps, C::kWriters * 32);
    for (Barrier& barrier : shared.squares_barrier) initialise(barrier, C::kConsumers * 4 * 8, 1);
    cutlass::arch::fence_barrier_init();
  }
  __syncthreads();

  // The register file gives five warps a scheduler 96 registers each; the others need few.
  if (threadIdx.x < 128) {
    cutlass::arch::warpgroup_reg_dealloc<64>();
    if (threadIdx.x >= 32) {
      Writer<C>{args, shared}.run();
    } else if (threadIdx.x == 0) {
      Producer<C>{args, maps, shared}.run([](Item const&) {});
    }
  } else {
    cutlass::arch::warpgroup_reg_alloc<104>();
    Consumer<C>{{args, shared, cutlass::canonical_warp_group_idx() - 1}, shared}.run();
  }
#endif
}

}  // namespace sampleattn::sm90::adaptive
