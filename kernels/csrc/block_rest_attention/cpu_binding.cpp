// block_rest_attention on the CPU, on the LibTorch Stable ABI: the rest is added where attention writes its rows.
#include "block_rest_attention/arguments.h"

#include <array>
#include <tuple>

#include "block_sparse_attention/cpu_tensors.h"

namespace sampleattn::cpu {
namespace {

// Contiguous floats of this shape.
const float* floats_of(const char* name, Tensor& tensor, std::initializer_list<int64_t> size) {
  bool fits =
      tensor.is_cpu() && tensor.scalar_type() == ScalarType::Float && tensor.dim() == static_cast<int64_t>(size.size());
  int64_t dim = 0;
  for (int64_t n : size) fits = fits && tensor.size(dim++) == n;
  STD_TORCH_CHECK(fits, "block_rest_attention: '", name,
                  "' must be a float32 CPU tensor, of every query block of query; got ", shape(tensor));
  tensor = torch::stable::contiguous(tensor);
  return tensor.const_data_ptr<float>();
}

std::tuple<Tensor, Tensor> run(BlockRestAttention<Tensor> call) {
  const char* op = "block_rest_attention";
  const BlockRestAttentionOptions& options = call.options;
  const Sizes sizes = sizes_of(op, call.query, call.key, options.block_q, options.block_k);
  check_4d(op, "value", call.value, call.query);
  const int64_t batch = sizes.batch, heads = sizes.q_heads, blocks = sizes.query_blocks();
  const RestArguments rest{floats_of("rest_value", call.rest_value, {batch, heads, blocks, call.value.size(3)}),
                           floats_of("rest_share", call.rest_share, {batch, heads, blocks}),
                           floats_of("rest_level", call.rest_level, {batch, heads, blocks}),
                           static_cast<float>(options.part)};
  return attend(op,
                {call.query,
                 call.key,
                 call.value,
                 call.block_mask,
                 {},
                 call.key_segment,
                 call.sinks,
                 {options.scale, true, options.q_offset, 0, options.block_q, options.block_k, options.q_stride}},
                rest);
}

}  // namespace
}  // namespace sampleattn::cpu

STABLE_TORCH_LIBRARY_IMPL(sampleattn, CPU, library) {
  sampleattn::implement<sampleattn::BlockRestAttention<torch::stable::Tensor>, sampleattn::cpu::run>(
      library, "block_rest_attention");
}
