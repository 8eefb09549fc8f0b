// The sm_90a kernel: one persistent thread block a multiprocessor, a producer warp and four consumer warp groups.
#pragma once

#include "cutlass/arch/reg_reconfig.h"
#include "select_adaptive/sm90/producer.h"
#include "select_peaks/sm90/consumer.h"

namespace sampleattn::sm90::peaks {

struct TensorMaps : adaptive::TensorMaps {
  CUtensorMap stand_ins;
};

template <class C>
__global__ void __launch_bounds__(C::kThreads, 1)
    select_peaks(const __grid_constant__ Arguments args, const __grid_constant__ TensorMaps maps) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(1024) unsigned char memory[];
  auto& tiles = *reinterpret_cast<adaptive::SharedTiles<C>*>(memory);

  if (threadIdx.x == 0) {
    adaptive::initialise_tiles<C>(tiles, maps, 0);
    prefetch_tma_descriptor(reinterpret_cast<TmaDescriptor const*>(&maps.stand_ins));
    cutlass::arch::fence_barrier_init();
  }
  __syncthreads();

  if (threadIdx.x < 128) {
    cutlass::arch::warpgroup_reg_dealloc<24>();
    if (threadIdx.x == 0) {
      adaptive::Producer<C> producer{args, maps, tiles};
      producer.run([&](Item const& item) {
        for (int tile = 0; tile < stand_in_tiles(item.own); ++tile) {
          producer.produce_keys(maps.stand_ins, tile * kBlock, item.head_kv, item.batch);
        }
      });
    }
  } else {
    cutlass::arch::warpgroup_reg_alloc<112>();
    Consumer<C>{{args, tiles, cutlass::canonical_warp_group_idx() - 1}, args}.run();
  }
#endif
}

}  // namespace sampleattn::sm90::peaks
