// The arguments of attention_mass, as kernels/attention_mass/op.py has them.
#pragma once

#include <cstdint>
#include <optional>

#include "sample_scores/arguments.h"

namespace sampleattn {

template <class Tensor>
struct AttentionMass {
  static constexpr char kSchema[] =
      "(Tensor query, Tensor key, Tensor block_mask, Tensor? key_segment, float scale, int q_offset, int chunk_n, "
      "int sample_rows, int block_q, int block_k) -> Tensor";

  Tensor query, key, block_mask;
  std::optional<Tensor> key_segment;
  SamplingOptions options;
  int64_t block_q, block_k;
};

}  // namespace sampleattn
