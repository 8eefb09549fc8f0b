// select_budget on the CPU, on the LibTorch Stable ABI.
#include "select_budget/arguments.h"
#include "select_budget/cpu.h"
#include "shared/binding.h"
#include "shared/cpu/isa.h"
#include "shared/cpu/tensors.h"

namespace sampleattn::cpu {
namespace {

Tensor run(SelectBudget<Tensor> call) {
  const char* op = "select_budget";
  const SelectBudgetOptions& options = call.options;
  const Sizes sizes = sizes_of(op, call.query, call.key, options.block_q, options.block_k);
  STD_TORCH_CHECK(options.rows >= 1 && options.window_slashes >= 1, op,
                  ": 'rows' and 'window_slashes' must be >= 1, got ", options.rows, " and ", options.window_slashes);
  call.query = last_dim_contiguous(call.query);
  call.key = last_dim_contiguous(call.key);
  const Dtype dtype = dtype_of(op, call.query);
  const BudgetArguments args{sizes, view(call.query, dtype), view(call.key, dtype),
                             segments_of(op, "key_segment", call.key_segment, sizes.batch, sizes.kv_len), options};
  Tensor mask = empty_block_mask(call.query, sizes);
  select_budget(args, select_isa(), parallel_for, torch::stable::get_num_threads(), words_of(mask));
  return mask;
}

}  // namespace
}  // namespace sampleattn::cpu

STABLE_TORCH_LIBRARY_IMPL(sampleattn, CPU, library) {
  sampleattn::implement<sampleattn::SelectBudget<torch::stable::Tensor>, sampleattn::cpu::run>(library,
                                                                                               "select_budget");
}
