// From the tensors of a selection by landmarks to its kernel on the CPU.
#pragma once

#include <utility>

#include "shared/cpu/isa.h"
#include "shared/cpu/landmark_selection.h"
#include "shared/cpu/tensors.h"

namespace sampleattn::cpu {

// Call: SelectAdaptive or SelectPeaks. least_members: the mean, and the landmarks that there must be.
template <class Rule, class Call>
Tensor select_by_landmarks(const char* op, Call call, int64_t least_members) {
  const auto& options = call.options;
  const Sizes sizes = sizes_of(op, call.query, call.key, options.block_q, options.block_k);
  Tensor& representatives = call.representatives;
  const int64_t members = representatives.dim() == 5 ? representatives.size(2) : 0;
  STD_TORCH_CHECK(
      representatives.dim() == 5 && representatives.is_cpu() &&
          representatives.scalar_type() == call.key.scalar_type() && representatives.size(0) == sizes.batch &&
          representatives.size(1) == sizes.kv_heads && members >= least_members &&
          representatives.size(3) == sizes.key_blocks() && representatives.size(4) == sizes.head_dim,
      op, ": 'representatives' must be a CPU tensor of key's dtype [", sizes.batch, ", ", sizes.kv_heads, ", ",
      least_members, " or more, ", sizes.key_blocks(), ", ", sizes.head_dim, "], got ", shape(representatives));
  for (Tensor* terms : {&call.log_weights, &call.spreads}) {
    STD_TORCH_CHECK(terms->dim() == 4 && terms->is_cpu() && terms->scalar_type() == ScalarType::Float &&
                        terms->size(0) == sizes.batch && terms->size(1) == sizes.kv_heads &&
                        terms->size(2) == members && terms->size(3) == sizes.key_blocks(),
                    op, ": 'log_weights' and 'spreads' must be float32 CPU tensors [", sizes.batch, ", ",
                    sizes.kv_heads, ", ", members, ", ", sizes.key_blocks(), "], got ", shape(*terms));
    if (!terms->is_contiguous()) *terms = torch::stable::contiguous(*terms);
  }
  STD_TORCH_CHECK(options.window_slashes >= 1, op, ": 'window_slashes' must be >= 1, got ", options.window_slashes);
  if (!representatives.is_contiguous()) representatives = torch::stable::contiguous(representatives);
  call.query = last_dim_contiguous(call.query);
  call.key = last_dim_contiguous(call.key);
  const Dtype dtype = dtype_of(op, call.query);
  const int64_t head = members * sizes.key_blocks() * sizes.head_dim;
  const typename Rule::Arguments args{
      sizes,
      view(call.query, dtype),
      view(call.key, dtype),
      {static_cast<char*>(representatives.data_ptr()), dtype, sizes.kv_heads * head, head, sizes.head_dim},
      call.log_weights.template const_data_ptr<float>(),
      call.spreads.template const_data_ptr<float>(),
      members,
      segments_of(op, "key_segment", call.key_segment, sizes.batch, sizes.kv_len),
      options,
      sinks_of(op, call.sinks, sizes)};
  Tensor mask = empty_block_mask(call.query, sizes);
  select_by_landmarks<Rule>(args, select_isa(), parallel_for, torch::stable::get_num_threads(), words_of(mask));
  return mask;
}

}  // namespace sampleattn::cpu
