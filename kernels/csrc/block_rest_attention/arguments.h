// The arguments of block_rest_attention, as kernels/block_rest_attention/op.py has them.
#pragma once

#include <cstdint>
#include <optional>

namespace sampleattn {

struct BlockRestAttentionOptions {
  double scale, part;
  int64_t q_offset, block_q, block_k, q_stride;
};

template <class Tensor>
struct BlockRestAttention {
  static constexpr char kSchema[] =
      "(Tensor query, Tensor key, Tensor value, Tensor block_mask, Tensor rest_value, Tensor rest_share, "
      "Tensor rest_level, Tensor? key_segment, Tensor? sinks, float scale, float part, int q_offset, int block_q, "
      "int block_k, int q_stride=1) -> (Tensor, Tensor)";

  Tensor query, key, value, block_mask, rest_value, rest_share, rest_level;
  std::optional<Tensor> key_segment, sinks;
  BlockRestAttentionOptions options;
};

}  // namespace sampleattn
