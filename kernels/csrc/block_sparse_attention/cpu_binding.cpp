// block_sparse_attention on the CPU, on the LibTorch Stable ABI.
#include <tuple>

#include "block_sparse_attention/cpu_tensors.h"

namespace sampleattn::cpu {
namespace {

std::tuple<Tensor, Tensor> run(BlockSparseAttention<Tensor> call) {
  return attend("block_sparse_attention", std::move(call));
}

}  // namespace
}  // namespace sampleattn::cpu

STABLE_TORCH_LIBRARY_IMPL(sampleattn, CPU, library) {
  sampleattn::implement<sampleattn::BlockSparseAttention<torch::stable::Tensor>, sampleattn::cpu::run>(
      library, "block_sparse_attention");
}
