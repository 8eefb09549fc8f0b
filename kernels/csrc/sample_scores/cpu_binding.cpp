// sample_scores on the CPU, on the LibTorch Stable ABI.
#include <tuple>

#include "sample_scores/arguments.h"
#include "sample_scores/cpu.h"
#include "sample_scores/cpu_tensors.h"
#include "shared/binding.h"
#include "shared/cpu/isa.h"
#include "shared/cpu/tensors.h"

namespace sampleattn::cpu {
namespace {

std::tuple<Tensor, Tensor> run(SampleScores<Tensor> call) {
  const SamplingArguments args = sampling_arguments("sample_scores", call, call.block_k);
  const Sizes& sizes = args.sizes;
  Tensor column = empty(call.query, {sizes.batch, sizes.q_heads, sizes.key_blocks()}, ScalarType::Float);
  Tensor slash = empty(call.query, {sizes.batch, sizes.q_heads, sizes.key_blocks()}, ScalarType::Float);
  sample_scores(args, select_isa(), parallel_for, torch::stable::get_num_threads(), column.mutable_data_ptr<float>(),
                slash.mutable_data_ptr<float>());
  return {column, slash};
}

}  // namespace
}  // namespace sampleattn::cpu

STABLE_TORCH_LIBRARY_IMPL(sampleattn, CPU, library) {
  sampleattn::implement<sampleattn::SampleScores<torch::stable::Tensor>, sampleattn::cpu::run>(library,
                                                                                               "sample_scores");
}
