// attention_mass on the CPU, on the LibTorch Stable ABI.
#include "attention_mass/arguments.h"
#include "attention_mass/cpu.h"
#include "sample_scores/cpu_tensors.h"
#include "shared/binding.h"
#include "shared/cpu/isa.h"
#include "shared/cpu/tensors.h"

namespace sampleattn::cpu {
namespace {

Tensor run(AttentionMass<Tensor> call) {
  const char* op = "attention_mass";
  const SamplingArguments args = sampling_arguments(op, call, call.block_q);
  const BlockMask mask = block_mask_of(op, call.block_mask, args.sizes);
  Tensor mass = empty(call.query, {args.sizes.batch, args.sizes.q_heads}, ScalarType::Float);
  attention_mass(args, mask, select_isa(), parallel_for, torch::stable::get_num_threads(),
                 mass.mutable_data_ptr<float>());
  return mass;
}

}  // namespace
}  // namespace sampleattn::cpu

STABLE_TORCH_LIBRARY_IMPL(sampleattn, CPU, library) {
  sampleattn::implement<sampleattn::AttentionMass<torch::stable::Tensor>, sampleattn::cpu::run>(library,
                                                                                                "attention_mass");
}
