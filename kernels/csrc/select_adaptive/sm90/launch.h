// Host side of the selection kernel: the launch.
#pragma once

#include "select_adaptive/sm90/kernel.h"
#include "select_adaptive/sm90/maps.h"
#include "select_adaptive/sm90/select.h"
#include "shared/cuda/launch.h"

namespace sampleattn::sm90::adaptive {

template <class C>
Error launch(Arguments const& args, int thread_blocks, cudaStream_t stream) {
  TensorMaps maps;
  if (Error const error = make_maps<C>(maps, args)) return error;
  constexpr int kBytes = sizeof(SharedStorage<C>);
  static_assert(kBytes <= kMostSharedBytes, "more shared memory than a thread block of sm_90 can have");
  launch_codes<C, true>(args, stream);
  return launch_kernel(&select_adaptive<C>, thread_blocks, C::kThreads, kBytes, stream, args, maps);
}

template <int kHeadDim>
Error select(Arguments const& args, int thread_blocks, cudaStream_t stream) {
  return dispatch_config<kHeadDim>(args, [&]<class C> { return launch<C>(args, thread_blocks, stream); });
}

}  // namespace sampleattn::sm90::adaptive
