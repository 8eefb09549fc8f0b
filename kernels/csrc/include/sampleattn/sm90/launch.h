// Host side of the sm_90a kernel: tensor maps and the launch.
#pragma once

#include <cuda_runtime.h>

#include "sampleattn/cuda/error.h"
#include "sampleattn/sm90/kernel.h"

namespace sampleattn::sm90 {

// A map that copies boxes of `box_rows` x `chunk` elements of a [B, H, S, D] tensor with any strides whose last
// is 1. Rows past the end read as zeros.
inline Error make_tensor_map(CUtensorMap& map, void const* data, Strides const& strides, int batch, int heads, int rows,
                             int columns, int box_rows, int chunk, DataType dtype) {
  static auto const encode = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult result;
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &result);
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry);
  }();
  if (!encode) return {"the driver has no cuTensorMapEncodeTiled"};
  cuuint64_t const sizes[] = {cuuint64_t(columns), cuuint64_t(rows), cuuint64_t(heads), cuuint64_t(batch)};
  cuuint64_t const bytes[] = {cuuint64_t(strides.row) * 2, cuuint64_t(strides.head) * 2,
                              cuuint64_t(strides.batch) * 2};
  cuuint32_t const box[] = {cuuint32_t(chunk), cuuint32_t(box_rows), 1, 1};
  cuuint32_t const steps[] = {1, 1, 1, 1};
  CUresult const result =
      encode(&map, dtype == DataType::kBFloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
             4, const_cast<void*>(data), sizes, bytes, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             chunk == 64 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? Error{} : Error{"cuTensorMapEncodeTiled failed", int(result)};
}

template <class C>
Error launch(Arguments const& args, int multiprocessors, cudaStream_t stream) {
  constexpr int kBoxKeys = C::kKeys < C::kBlockK ? C::kKeys : C::kBlockK;
  TensorMaps maps;
  Error error = make_tensor_map(maps.query, args.query, args.query_strides, args.batch, args.heads_q, args.q_len,
                                C::kHeadDim, kTileRows, C::kChunk, args.dtype);
  if (!error) {
    error = make_tensor_map(maps.key, args.key, args.key_strides, args.batch, args.heads_kv, args.k_len, C::kHeadDim,
                            kBoxKeys, C::kChunk, args.dtype);
  }
  if (!error) {
    error = make_tensor_map(maps.value, args.value, args.value_strides, args.batch, args.heads_kv, args.k_len,
                            C::kHeadDimV, kBoxKeys, C::kChunkV, args.dtype);
  }
  if (error) return error;

  constexpr int kBytes = sizeof(SharedStorage<C>);
  static_assert(kBytes <= 232448, "more shared memory than a thread block of sm_90 can have");
  auto* kernel = &block_sparse_attention<C>;
  cudaError_t status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (status == cudaSuccess) {
    int const blocks = args.tiles() < multiprocessors ? args.tiles() : multiprocessors;
    kernel<<<blocks, C::kThreads, kBytes, stream>>>(args, maps);
    status = cudaGetLastError();
  }
  return to_error(status);
}

}  // namespace sampleattn::sm90
