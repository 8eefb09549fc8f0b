// select_budget_rest on the CPU, on the LibTorch Stable ABI.
#include <tuple>

#include "select_budget/cpu_tensors.h"
#include "select_budget_rest/arguments.h"
#include "shared/binding.h"

namespace sampleattn::cpu {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> run(SelectBudgetRest<Tensor> call) {
  const char* op = "select_budget_rest";
  Sizes sizes = budget_sizes(op, call.query, call.key, call.options);
  check_value(op, call.value, call.key, call.query);
  sizes.value_head_dim = call.value.size(3);
  const Tensor value = last_dim_contiguous(call.value);
  Tensor rest_value =
      empty(call.query, {sizes.batch, sizes.q_heads, sizes.query_blocks(), sizes.value_head_dim}, ScalarType::Float);
  Tensor share = empty(call.query, {sizes.batch, sizes.q_heads, sizes.query_blocks()}, ScalarType::Float);
  Tensor level = empty(call.query, {sizes.batch, sizes.q_heads, sizes.query_blocks()}, ScalarType::Float);
  const BudgetRest rest{view(value, dtype_of(op, call.query)), block_mask_of(op, call.block_mask, sizes),
                        rest_value.mutable_data_ptr<float>(), share.mutable_data_ptr<float>(),
                        level.mutable_data_ptr<float>()};
  Tensor mask = select_budget(op, {call.query, call.key, call.key_segment, call.options, call.sinks}, sizes, &rest);
  return {mask, rest_value, share, level};
}

}  // namespace
}  // namespace sampleattn::cpu

STABLE_TORCH_LIBRARY_IMPL(sampleattn, CPU, library) {
  sampleattn::implement<sampleattn::SelectBudgetRest<torch::stable::Tensor>, sampleattn::cpu::run>(
      library, "select_budget_rest");
}
