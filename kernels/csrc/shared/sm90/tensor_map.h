// Host side of the copy engine: what a bulk copy of parts of a tensor is described by.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include "shared/cuda/error.h"
#include "shared/cuda/types.h"

namespace sampleattn::sm90 {

// Boxes of a tensor whose first dimension is contiguous, rows swizzled by their width of 32, 64 or 128 bytes.
// `bytes`: strides of the other dimensions. What lies outside reads as zeros.
template <int kRank>
Error encode_tensor_map(CUtensorMap& map, void const* data, cuuint64_t const (&sizes)[kRank],
                        cuuint64_t const (&bytes)[kRank - 1], cuuint32_t const (&box)[kRank], CUtensorMapDataType type,
                        int width) {
  static auto const encode = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult result;
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &result);
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(entry);
  }();
  if (!encode) return {"the driver has no cuTensorMapEncodeTiled"};
  cuuint32_t steps[kRank];
  for (cuuint32_t& step : steps) step = 1;
  CUtensorMapSwizzle const swizzle = width == 128  ? CU_TENSOR_MAP_SWIZZLE_128B
                                     : width == 64 ? CU_TENSOR_MAP_SWIZZLE_64B
                                                   : CU_TENSOR_MAP_SWIZZLE_32B;
  CUresult const result =
      encode(&map, type, kRank, const_cast<void*>(data), sizes, bytes, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? Error{} : Error{"cuTensorMapEncodeTiled failed", int(result)};
}

// Boxes of `box_rows` x `chunk` elements of a [B, H, S, D] tensor with any strides whose last is 1.
inline Error make_tensor_map(CUtensorMap& map, void const* data, Strides const& strides, int batch, int heads, int rows,
                             int columns, int box_rows, int chunk, DataType dtype) {
  cuuint64_t const sizes[] = {cuuint64_t(columns), cuuint64_t(rows), cuuint64_t(heads), cuuint64_t(batch)};
  cuuint64_t const bytes[] = {cuuint64_t(strides.row) * 2, cuuint64_t(strides.head) * 2, cuuint64_t(strides.batch) * 2};
  cuuint32_t const box[] = {cuuint32_t(chunk), cuuint32_t(box_rows), 1, 1};
  auto const type = dtype == DataType::kBFloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  return encode_tensor_map<4>(map, data, sizes, bytes, box, type, chunk * 2);
}

}  // namespace sampleattn::sm90
