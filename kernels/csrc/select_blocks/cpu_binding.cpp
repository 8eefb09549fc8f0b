// select_blocks on the CPU, on the LibTorch Stable ABI.
#include "select_blocks/arguments.h"
#include "select_blocks/cpu.h"
#include "shared/binding.h"
#include "shared/cpu/isa.h"
#include "shared/cpu/tensors.h"

namespace sampleattn::cpu {
namespace {

Tensor run(SelectBlocks<Tensor> call) {
  const char* op = "select_blocks";
  const SelectBlocksOptions& options = call.options;
  check_block_sizes(op, options.block_q, options.block_k);
  const int64_t batch = call.column_scores.size(0), heads = call.column_scores.size(1);
  const int64_t key_blocks = ceil_div(options.kv_len, options.block_k);
  for (Tensor* scores : {&call.column_scores, &call.slash_scores}) {
    STD_TORCH_CHECK(scores->dim() == 3 && scores->is_cpu() && scores->scalar_type() == ScalarType::Float &&
                        scores->size(0) == batch && scores->size(1) == heads && scores->size(2) == key_blocks,
                    op, ": scores must be float32 CPU tensors [B, Hq, ", key_blocks, "], got ", shape(*scores));
    if (!scores->is_contiguous()) *scores = torch::stable::contiguous(*scores);
  }
  STD_TORCH_CHECK(options.q_len >= 0, op, ": 'q_len' must be >= 0, got ", options.q_len);
  const SelectBlocksArguments args{call.column_scores.const_data_ptr<float>(),
                                   call.slash_scores.const_data_ptr<float>(),
                                   segments_of(op, "key_segment", call.key_segment, batch, options.kv_len),
                                   batch,
                                   heads,
                                   options};
  Tensor mask =
      empty(call.column_scores, {batch, heads, ceil_div(options.q_len, options.block_q), mask_words(key_blocks)},
            ScalarType::Int);
  select_blocks(args, parallel_for, torch::stable::get_num_threads(), words_of(mask));
  return mask;
}

}  // namespace
}  // namespace sampleattn::cpu

STABLE_TORCH_LIBRARY_IMPL(sampleattn, CPU, library) {
  sampleattn::implement<sampleattn::SelectBlocks<torch::stable::Tensor>, sampleattn::cpu::run>(library,
                                                                                               "select_blocks");
}
