// block_sparse_attention on the CPU, on the LibTorch Stable ABI.
#include <tuple>

#include "block_sparse_attention/arguments.h"
#include "block_sparse_attention/cpu.h"
#include "shared/binding.h"
#include "shared/cpu/isa.h"
#include "shared/cpu/tensors.h"

namespace sampleattn::cpu {
namespace {

std::tuple<Tensor, Tensor> run(BlockSparseAttention<Tensor> call) {
  const char* op = "block_sparse_attention";
  Sizes sizes = sizes_of(op, call.query, call.key, call.options.block_q, call.options.block_k);
  check_4d(op, "value", call.value, call.query);
  STD_TORCH_CHECK(call.value.size(0) == call.key.size(0) && call.value.size(1) == call.key.size(1) &&
                      call.value.size(2) == call.key.size(2),
                  op, ": 'value' must have key's batch, heads and length; key ", shape(call.key), ", value ",
                  shape(call.value));
  sizes.value_head_dim = call.value.size(3);
  for (Tensor* tensor : {&call.query, &call.key, &call.value}) *tensor = last_dim_contiguous(*tensor);
  const Dtype dtype = dtype_of(op, call.query);
  Tensor out = torch::stable::transpose(
      empty(call.query, {sizes.batch, sizes.q_len, sizes.q_heads, sizes.value_head_dim}), 1, 2);
  Tensor lse = empty(call.query, {sizes.batch, sizes.q_heads, sizes.q_len}, ScalarType::Float);
  if (call.sinks) {
    STD_TORCH_CHECK(call.sinks->dim() == 1 && call.sinks->scalar_type() == ScalarType::Float &&
                        (call.sinks->size(0) == sizes.q_heads || call.sinks->size(0) == 1),
                    op, ": 'sinks' must be a float32 [", sizes.q_heads, "] or [1] tensor, got ", shape(*call.sinks));
  }
  const AttentionArguments args{sizes,
                                view(call.query, dtype),
                                view(call.key, dtype),
                                view(call.value, dtype),
                                view(out, dtype),
                                lse.mutable_data_ptr<float>(),
                                block_mask_of(op, call.block_mask, sizes),
                                segments_of(op, "query_segment", call.query_segment, sizes.batch, sizes.q_len),
                                segments_of(op, "key_segment", call.key_segment, sizes.batch, sizes.kv_len),
                                call.sinks ? call.sinks->const_data_ptr<float>() : nullptr,
                                call.sinks && call.sinks->size(0) > 1 ? call.sinks->stride(0) : 0,
                                call.options};
  block_sparse_attention(args, select_isa(), parallel_for, torch::stable::get_num_threads());
  return {out, lse};
}

}  // namespace
}  // namespace sampleattn::cpu

STABLE_TORCH_LIBRARY_IMPL(sampleattn, CPU, library) {
  sampleattn::implement<sampleattn::BlockSparseAttention<torch::stable::Tensor>, sampleattn::cpu::run>(
      library, "block_sparse_attention");
}
