// The arguments of block_sparse_attention, as kernels/block_sparse_attention/op.py has them.
#pragma once

#include <cstdint>
#include <optional>

namespace sampleattn {

struct BlockSparseAttentionOptions {
  double scale;
  bool causal;
  int64_t q_offset, window, block_q, block_k, q_stride = 1;
};

template <class Tensor>
struct BlockSparseAttention {
  static constexpr char kSchema[] =
      "(Tensor query, Tensor key, Tensor value, Tensor block_mask, Tensor? query_segment, Tensor? key_segment, "
      "Tensor? sinks, float scale, bool causal, int q_offset, int window, int block_q, int block_k, int q_stride=1) "
      "-> (Tensor, Tensor)";

  Tensor query, key, value, block_mask;
  std::optional<Tensor> query_segment, key_segment, sinks;
  BlockSparseAttentionOptions options;
};

}  // namespace sampleattn
