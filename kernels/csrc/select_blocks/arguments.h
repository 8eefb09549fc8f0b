// The arguments of select_blocks, as kernels/select_blocks/op.py has them.
#pragma once

#include <cstdint>
#include <optional>

namespace sampleattn {

struct SelectBlocksOptions {
  int64_t q_len, kv_len, q_offset, block_q, block_k;
  double alpha_c, alpha_s;
  bool keep_sink;
  int64_t window_slashes, last_rows;
};

template <class Tensor>
struct SelectBlocks {
  static constexpr char kSchema[] =
      "(Tensor column_scores, Tensor slash_scores, Tensor? key_segment, int q_len, int kv_len, int q_offset, "
      "int block_q, int block_k, float alpha_c, float alpha_s, bool keep_sink, int window_slashes, int last_rows) "
      "-> Tensor";

  Tensor column_scores, slash_scores;
  std::optional<Tensor> key_segment;
  SelectBlocksOptions options;
};

}  // namespace sampleattn
