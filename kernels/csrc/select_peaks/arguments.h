// The arguments of select_peaks, as kernels/select_peaks/op.py has them.
#pragma once

#include <cstdint>
#include <optional>

namespace sampleattn {

struct SelectPeaksOptions {
  double scale;
  int64_t q_offset, block_q, block_k;
  double peak;
  bool keep_sink;
  int64_t window_slashes, last_rows, q_stride;
};

template <class Tensor>
struct SelectPeaks {
  static constexpr char kSchema[] =
      "(Tensor query, Tensor key, Tensor representatives, Tensor log_weights, Tensor spreads, Tensor? key_segment, "
      "float scale, int q_offset, int block_q, int block_k, float peak, bool keep_sink, int window_slashes, "
      "int last_rows, int q_stride=1, Tensor? sinks=None) -> Tensor";

  Tensor query, key, representatives, log_weights, spreads;
  std::optional<Tensor> key_segment;
  SelectPeaksOptions options;
  std::optional<Tensor> sinks;
};

}  // namespace sampleattn
