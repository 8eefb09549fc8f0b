// select_budget on the CPU, on the LibTorch Stable ABI.
#include "select_budget/arguments.h"
#include "select_budget/cpu_tensors.h"
#include "shared/binding.h"

namespace sampleattn::cpu {
namespace {

Tensor run(SelectBudget<Tensor> call) {
  const char* op = "select_budget";
  const Sizes sizes = budget_sizes(op, call.query, call.key, call.options);
  return select_budget(op, std::move(call), sizes);
}

}  // namespace
}  // namespace sampleattn::cpu

STABLE_TORCH_LIBRARY_IMPL(sampleattn, CPU, library) {
  sampleattn::implement<sampleattn::SelectBudget<torch::stable::Tensor>, sampleattn::cpu::run>(library,
                                                                                               "select_budget");
}
