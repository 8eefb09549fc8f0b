// Host side of kernels over tiles of queries, keys and representatives: tensor maps, and which kernel it is.
#pragma once

#include "select_adaptive/sm90/codes.h"
#include "select_adaptive/sm90/producer.h"
#include "shared/sm90/tensor_map.h"

namespace sampleattn::sm90::adaptive {

template <class C>
Error make_maps(TensorMaps& maps, Arguments const& args) {
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
  return error;
}

// Fills codes and what they are worth, see write_codes.
template <class C, bool kMeans>
void launch_codes(Arguments const& args, cudaStream_t stream) {
  constexpr int kWarps = 8;
  dim3 const grid((args.quad_count * 4 + kWarps - 1) / kWarps, args.batch * args.kv_heads);
  write_codes<C, kMeans><<<grid, kWarps * 32, 0, stream>>>(args);
}

// launch.template operator()<Config>() of both data types and both numbers of representatives of one head dim.
template <int kHeadDim, class Launch>
Error dispatch_config(Arguments const& args, Launch const& launch) {
  using BFloat16 = cutlass::bfloat16_t;
  using Float16 = cutlass::half_t;
  bool const is_bfloat16 = args.dtype == DataType::kBFloat16;
  if (args.members == 8) {
    return is_bfloat16 ? launch.template operator()<Config<BFloat16, kHeadDim, 8>>()
                       : launch.template operator()<Config<Float16, kHeadDim, 8>>();
  }
  if (args.members == 16) {
    return is_bfloat16 ? launch.template operator()<Config<BFloat16, kHeadDim, 16>>()
                       : launch.template operator()<Config<Float16, kHeadDim, 16>>();
  }
  return {"no kernel for this number of representatives", args.members};
}

}  // namespace sampleattn::sm90::adaptive
