// The arguments of select_budget, as kernels/select_budget/op.py has them.
#pragma once

#include <cstdint>
#include <optional>

namespace sampleattn {

struct SelectBudgetOptions {
  double scale;
  int64_t q_offset, block_q, block_k;
  double budget, tau;
  int64_t rows;
  bool keep_sink;
  int64_t window_slashes, q_stride;
};

template <class Tensor>
struct SelectBudget {
  static constexpr char kSchema[] =
      "(Tensor query, Tensor key, Tensor? key_segment, float scale, int q_offset, int block_q, int block_k, "
      "float budget, float tau, int rows, bool keep_sink, int window_slashes, int q_stride=1, Tensor? sinks=None) "
      "-> Tensor";

  Tensor query, key;
  std::optional<Tensor> key_segment;
  SelectBudgetOptions options;
  std::optional<Tensor> sinks;
};

}  // namespace sampleattn
