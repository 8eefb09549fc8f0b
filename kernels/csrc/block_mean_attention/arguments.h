// The arguments of block_mean_attention, as kernels/block_mean_attention/op.py has them.
#pragma once

#include <cstdint>
#include <optional>

namespace sampleattn {

template <class Tensor>
struct BlockMeanAttention {
  static constexpr char kSchema[] =
      "(Tensor query, Tensor key, Tensor value, Tensor block_mask, Tensor? key_segment, Tensor? sinks, float scale, "
      "int q_offset, int block_q, int block_k) -> (Tensor, Tensor)";

  Tensor query, key, value, block_mask;
  std::optional<Tensor> key_segment, sinks;
  double scale;
  int64_t q_offset, block_q, block_k;
};

}  // namespace sampleattn
