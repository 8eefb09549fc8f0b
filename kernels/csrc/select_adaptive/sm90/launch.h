// Host side of the selection kernel: tensor maps and the launch.
#pragma once

#include "select_adaptive/sm90/codes.h"
#include "select_adaptive/sm90/kernel.h"
#include "select_adaptive/sm90/select.h"
#include "shared/sm90/tensor_map.h"

namespace sampleattn::sm90::adaptive {

template <class C>
Error launch(Arguments const& args, int thread_blocks, cudaStream_t stream) {
  TensorMaps maps;
  Error error = make_tensor_map(maps.query, args.query, args.query_strides, args.batch, args.q_heads, args.q_len,
                                C::kHeadDim, kBlock, C::kChunk, args.dtype);
  if (!error) {
    error = make_tensor_map(maps.key, args.key, args.key_strides, args.batch, args.kv_heads, args.kv_len, C::kHeadDim,
                            C::kColumns, C::kChunk, args.dtype);
  }
  if (!error) {
    cuuint64_t const rows = cuuint64_t(args.batch) * args.kv_heads * args.quad_count * 4 * C::kMembers;
    error = encode_tensor_map<2>(maps.codes, args.codes, {C::kHeadDim, rows}, {C::kHeadDim},
                                 {C::kCodeChunk, C::kColumns}, CU_TENSOR_MAP_DATA_TYPE_UINT8, C::kCodeChunk);
  }
  if (error) return error;

  constexpr int kBytes = sizeof(SharedStorage<C>);
  static_assert(kBytes <= 232448, "more shared memory than a thread block of sm_90 can have");
  constexpr int kWarps = 8;
  dim3 const grid((args.quad_count * 4 + kWarps - 1) / kWarps, args.batch * args.kv_heads);
  write_codes<C><<<grid, kWarps * 32, 0, stream>>>(args);
  auto* kernel = &select_adaptive<C>;
  cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (status == cudaSuccess) {
    kernel<<<thread_blocks, C::kThreads, kBytes, stream>>>(args, maps);
    status = cudaGetLastError();
  }
  return to_error(status);
}

// Both data types and both numbers of representatives of one head dim.
template <int kHeadDim>
Error select(Arguments const& args, int thread_blocks, cudaStream_t stream) {
  using BFloat16 = cutlass::bfloat16_t;
  using Float16 = cutlass::half_t;
  if (args.members == 8) {
    return args.dtype == DataType::kBFloat16 ? launch<Config<BFloat16, kHeadDim, 8>>(args, thread_blocks, stream)
                                             : launch<Config<Float16, kHeadDim, 8>>(args, thread_blocks, stream);
  }
  if (args.members == 16) {
    return args.dtype == DataType::kBFloat16 ? launch<Config<BFloat16, kHeadDim, 16>>(args, thread_blocks, stream)
                                             : launch<Config<Float16, kHeadDim, 16>>(args, thread_blocks, stream);
  }
  return {"no kernel for this number of representatives", args.members};
}

}  // namespace sampleattn::sm90::adaptive
