// select_adaptive on the CPU, on the LibTorch Stable ABI.
#include <utility>

#include "select_adaptive/arguments.h"
#include "select_adaptive/cpu.h"
#include "shared/binding.h"
#include "shared/cpu/landmark_tensors.h"

namespace sampleattn::cpu {
namespace {

Tensor run(SelectAdaptive<Tensor> call) {
  return select_by_landmarks<SquaredShares>("select_adaptive", std::move(call), 1);
}

}  // namespace
}  // namespace sampleattn::cpu

STABLE_TORCH_LIBRARY_IMPL(sampleattn, CPU, library) {
  sampleattn::implement<sampleattn::SelectAdaptive<torch::stable::Tensor>, sampleattn::cpu::run>(library,
                                                                                                 "select_adaptive");
}
