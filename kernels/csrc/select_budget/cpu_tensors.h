// From the tensors of select_budget to its kernel on the CPU, for both ops that have a budget.
#pragma once

#include "select_budget/arguments.h"
#include "select_budget/cpu.h"
#include "shared/cpu/isa.h"
#include "shared/cpu/tensors.h"

namespace sampleattn::cpu {

inline Sizes budget_sizes(const char* op, const Tensor& query, const Tensor& key, const SelectBudgetOptions& options) {
  STD_TORCH_CHECK(options.rows >= 1 && options.window_slashes >= 1, op,
                  ": 'rows' and 'window_slashes' must be >= 1, got ", options.rows, " and ", options.window_slashes);
  return sizes_of(op, query, key, options.block_q, options.block_k);
}

// The block mask; `rest` is written, too, unless nullptr.
inline Tensor select_budget(const char* op, SelectBudget<Tensor> call, const Sizes& sizes,
                            const BudgetRest* rest = nullptr) {
  call.query = last_dim_contiguous(call.query);
  call.key = last_dim_contiguous(call.key);
  const Dtype dtype = dtype_of(op, call.query);
  const BudgetArguments args{sizes,
                             view(call.query, dtype),
                             view(call.key, dtype),
                             segments_of(op, "key_segment", call.key_segment, sizes.batch, sizes.kv_len),
                             call.options,
                             sinks_of(op, call.sinks, sizes),
                             rest};
  Tensor mask = empty_block_mask(call.query, sizes);
  select_budget(args, select_isa(), parallel_for, torch::stable::get_num_threads(), words_of(mask));
  return mask;
}

}  // namespace sampleattn::cpu
