// From the tensors of block_sparse_attention to its kernel on the CPU, for all ops that attend to kept blocks.
#pragma once

#include <tuple>

#include "block_sparse_attention/arguments.h"
#include "block_sparse_attention/cpu.h"
#include "shared/binding.h"
#include "shared/cpu/isa.h"
#include "shared/cpu/tensors.h"

namespace sampleattn::cpu {

// The outputs of block_sparse_attention; `rest` as it comes.
inline std::tuple<Tensor, Tensor> attend(const char* op, BlockSparseAttention<Tensor> call,
                                         const RestArguments& rest = {}) {
  Sizes sizes = sizes_of(op, call.query, call.key, call.options.block_q, call.options.block_k);
  check_value(op, call.value, call.key, call.query);
  sizes.value_head_dim = call.value.size(3);
  for (Tensor* tensor : {&call.query, &call.key, &call.value}) *tensor = last_dim_contiguous(*tensor);
  const Dtype dtype = dtype_of(op, call.query);
  Tensor out = torch::stable::transpose(
      empty(call.query, {sizes.batch, sizes.q_len, sizes.q_heads, sizes.value_head_dim}), 1, 2);
  Tensor lse = empty(call.query, {sizes.batch, sizes.q_heads, sizes.q_len}, ScalarType::Float);
  const AttentionArguments args{sizes,
                                view(call.query, dtype),
                                view(call.key, dtype),
                                view(call.value, dtype),
                                view(out, dtype),
                                lse.mutable_data_ptr<float>(),
                                block_mask_of(op, call.block_mask, sizes),
                                segments_of(op, "query_segment", call.query_segment, sizes.batch, sizes.q_len),
                                segments_of(op, "key_segment", call.key_segment, sizes.batch, sizes.kv_len),
                                sinks_of(op, call.sinks, sizes),
                                call.options,
                                rest};
  block_sparse_attention(args, select_isa(), parallel_for, torch::stable::get_num_threads());
  return {out, lse};
}

}  // namespace sampleattn::cpu
