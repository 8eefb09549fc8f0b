// select_peaks on the CPU, on the LibTorch Stable ABI.
#include <utility>

#include "select_peaks/arguments.h"
#include "select_peaks/cpu.h"
#include "shared/binding.h"
#include "shared/cpu/landmark_tensors.h"

namespace sampleattn::cpu {
namespace {

Tensor run(SelectPeaks<Tensor> call) { return select_by_landmarks<LargestShares>("select_peaks", std::move(call), 2); }

}  // namespace
}  // namespace sampleattn::cpu

STABLE_TORCH_LIBRARY_IMPL(sampleattn, CPU, library) {
  sampleattn::implement<sampleattn::SelectPeaks<torch::stable::Tensor>, sampleattn::cpu::run>(library, "select_peaks");
}
