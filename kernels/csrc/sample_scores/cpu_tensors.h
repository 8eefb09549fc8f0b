// From the tensors of a call to what sampling takes, for the ops that sample the same rows.
#pragma once

#include "sample_scores/sampled_shares.h"
#include "shared/cpu/tensors.h"

namespace sampleattn::cpu {

template <class Call>
SamplingArguments sampling_arguments(const char* op, Call& call, int64_t block_q) {
  const Sizes sizes = sizes_of(op, call.query, call.key, block_q, call.block_k);
  STD_TORCH_CHECK(call.options.chunk_n >= 1 && call.options.sample_rows >= 1, op,
                  ": 'chunk_n' and 'sample_rows' must be >= 1, got ", call.options.chunk_n, " and ",
                  call.options.sample_rows);
  call.query = last_dim_contiguous(call.query);
  call.key = last_dim_contiguous(call.key);
  const Dtype dtype = dtype_of(op, call.query);
  return {sizes, view(call.query, dtype), view(call.key, dtype),
          segments_of(op, "key_segment", call.key_segment, sizes.batch, sizes.kv_len), call.options};
}

}  // namespace sampleattn::cpu
