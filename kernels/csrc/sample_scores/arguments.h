// The arguments of sample_scores, as kernels/sample_scores/op.py has them.
#pragma once

#include <cstdint>
#include <optional>

namespace sampleattn {

// The last sample_rows rows of each of chunk_n equal chunks of a prompt's rows are sampled.
struct SamplingOptions {
  double scale;
  int64_t q_offset, chunk_n, sample_rows;
};

template <class Tensor>
struct SampleScores {
  static constexpr char kSchema[] =
      "(Tensor query, Tensor key, Tensor? key_segment, float scale, int q_offset, int chunk_n, int sample_rows, "
      "int block_k) -> (Tensor, Tensor)";

  Tensor query, key;
  std::optional<Tensor> key_segment;
  SamplingOptions options;
  int64_t block_k;
};

}  // namespace sampleattn
