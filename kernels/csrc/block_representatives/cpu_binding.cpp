// block_representatives on the CPU, on the LibTorch Stable ABI.
#include <tuple>

#include "block_representatives/arguments.h"
#include "block_representatives/cpu.h"
#include "shared/binding.h"
#include "shared/cpu/isa.h"
#include "shared/cpu/tensors.h"

namespace sampleattn::cpu {
namespace {

std::tuple<Tensor, Tensor, Tensor> run(BlockRepresentatives<Tensor> call) {
  const char* op = "block_representatives";
  const Sizes sizes = sizes_of(op, call.key, call.key, call.block_k, call.block_k);
  STD_TORCH_CHECK(call.landmarks >= 0 && call.landmarks <= call.block_k, op,
                  ": 'landmarks' must be in [0, block_k], got ", call.landmarks);
  const Tensor key = last_dim_contiguous(call.key);
  const RepresentativeArguments args{sizes, view(key, dtype_of(op, key)),
                                     segments_of(op, "key_segment", call.key_segment, sizes.batch, sizes.kv_len),
                                     call.landmarks};
  const int64_t members = 1 + call.landmarks;
  Tensor representatives = empty(key, {sizes.batch, sizes.kv_heads, members, sizes.key_blocks(), sizes.head_dim});
  Tensor log_weights = empty(key, {sizes.batch, sizes.kv_heads, members, sizes.key_blocks()}, ScalarType::Float);
  Tensor spreads = empty(key, {sizes.batch, sizes.kv_heads, members, sizes.key_blocks()}, ScalarType::Float);
  block_representatives(args, select_isa(), parallel_for, torch::stable::get_num_threads(),
                        static_cast<char*>(representatives.data_ptr()), log_weights.mutable_data_ptr<float>(),
                        spreads.mutable_data_ptr<float>());
  return {representatives, log_weights, spreads};
}

}  // namespace
}  // namespace sampleattn::cpu

STABLE_TORCH_LIBRARY_IMPL(sampleattn, CPU, library) {
  sampleattn::implement<sampleattn::BlockRepresentatives<torch::stable::Tensor>, sampleattn::cpu::run>(
      library, "block_representatives");
}
