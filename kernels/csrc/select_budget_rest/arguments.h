// The arguments of select_budget_rest, as kernels/select_budget_rest/op.py has them.
#pragma once

#include <optional>

#include "select_budget/arguments.h"

namespace sampleattn {

template <class Tensor>
struct SelectBudgetRest {
  static constexpr char kSchema[] =
      "(Tensor query, Tensor key, Tensor value, Tensor block_mask, Tensor? key_segment, float scale, int q_offset, "
      "int block_q, int block_k, float budget, float tau, int rows, bool keep_sink, int window_slashes, "
      "int q_stride=1, Tensor? sinks=None) -> (Tensor, Tensor, Tensor, Tensor)";

  Tensor query, key, value, block_mask;
  std::optional<Tensor> key_segment;
  SelectBudgetOptions options;
  std::optional<Tensor> sinks;
};

}  // namespace sampleattn
