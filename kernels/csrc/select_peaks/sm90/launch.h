// Host side: what is prepared for the kernel, and the launches.
#pragma once

#include "select_adaptive/sm90/maps.h"
#include "select_peaks/sm90/kernel.h"
#include "select_peaks/sm90/select.h"
#include "shared/cuda/launch.h"

namespace sampleattn::sm90::peaks {

template <class C>
Error launch(Arguments const& args, int thread_blocks, cudaStream_t stream) {
  TensorMaps maps;
  if (Error const error = adaptive::make_maps<C>(maps, args)) return error;
  int64_t const rows = args.stand_in_rows(), head = rows * C::kHeadDim;
  Error const error =
      make_tensor_map(maps.stand_ins, args.stand_ins, {args.kv_heads * head, head, C::kHeadDim}, args.batch,
                      args.kv_heads, int(rows), C::kHeadDim, C::kColumns, C::kChunk, args.dtype);
  if (error) return error;
  constexpr int kBytes = sizeof(adaptive::SharedTiles<C>);
  static_assert(kBytes <= kMostSharedBytes, "more shared memory than a thread block of sm_90 can have");
  adaptive::launch_codes<C, false>(args, stream);
  constexpr int kWarps = 8;
  dim3 const grid((rows + kWarps - 1) / kWarps, args.batch * args.kv_heads);
  write_stand_ins<C><<<grid, kWarps * 32, 0, stream>>>(args);
  return launch_kernel(&select_peaks<C>, thread_blocks, C::kThreads, kBytes, stream, args, maps);
}

template <int kHeadDim>
Error select(Arguments const& args, int thread_blocks, cudaStream_t stream) {
  return adaptive::dispatch_config<kHeadDim>(args, [&]<class C> { return launch<C>(args, thread_blocks, stream); });
}

}  // namespace sampleattn::sm90::peaks
