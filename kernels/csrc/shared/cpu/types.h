// What the CPU kernels work on: raw pointers, strides in elements, sizes. No torch.
#pragma once

#include <cstdint>

#include "shared/arithmetic.h"

namespace sampleattn::cpu {

enum class Dtype { f32, bf16, f16 };

inline int64_t element_size(Dtype dtype) { return dtype == Dtype::f32 ? 4 : 2; }

// [B, H, S, D] with a contiguous last dimension.
struct View {
  char* data;
  Dtype dtype;
  int64_t batch_stride, head_stride, row_stride;

  char* row(int64_t b, int64_t h, int64_t s) const {
    return data + (b * batch_stride + h * head_stride + s * row_stride) * element_size(dtype);
  }
};

// int32 [B|1, S]; batch_stride 0 broadcasts, data nullptr stands for all zeros.
struct Segments {
  const int32_t* data = nullptr;
  int64_t batch_stride = 0;

  const int32_t* row(int64_t b) const { return data ? data + b * batch_stride : nullptr; }
};

// int32 [B|1, Hq|1, n_query_blocks, n_words]: one bit a block; strides of 0 broadcast.
struct BlockMask {
  const uint32_t* data;
  int64_t batch_stride, head_stride, row_stride;

  const uint32_t* row(int64_t b, int64_t h, int64_t i) const {
    return data + b * batch_stride + h * head_stride + i * row_stride;
  }
};

// fp32 [Hq|1]: of a head, a logit beside its scores that has no value; data nullptr: there is none.
struct Sinks {
  const float* data = nullptr;
  int64_t stride = 0;  // 0 broadcasts

  float of_head(int64_t h) const { return data ? data[h * stride] : -__builtin_inff(); }
};

struct Sizes {
  int64_t batch, q_heads, kv_heads, q_len, kv_len, head_dim, value_head_dim;
  int64_t block_q, block_k;

  int64_t query_blocks() const { return ceil_div(q_len, block_q); }
  int64_t key_blocks() const { return ceil_div(kv_len, block_k); }
  int64_t group() const { return q_heads / kv_heads; }
};

// Which keys of one key block the rows of one query strip may see. Bounds are relative to the block's first key.
struct BlockMaskedRows {
  const int32_t* low;          // first key of each row
  const int32_t* high;         // one past its last key
  const int32_t* row_segment;  // per row, or nullptr
  const int32_t* key_segment;  // per key of the block; nullptr together with row_segment
};

}  // namespace sampleattn::cpu
