// Block-sparse attention, alone, with means and with a rest, as ops of the namespace sampleattn_cuda, on the LibTorch
// Stable ABI.
#include <optional>
#include <tuple>
#include <utility>

#include "block_mean_attention/arguments.h"
#include "block_mean_attention/cuda/means.h"
#include "block_rest_attention/arguments.h"
#include "block_sparse_attention/arguments.h"
#include "block_sparse_attention/cuda/schedule.h"
#include "block_sparse_attention/sm90/forward.h"
#include "shared/binding.h"
#include "shared/cuda/head_dims.h"
#include "shared/cuda/tensors.h"

namespace {

using namespace sampleattn;

using Forward = Error (*)(Arguments const& args, int device, cudaStream_t stream);

Error forward_sm90(Arguments const& args, int device, cudaStream_t stream) {
  return AttentionHeadDims::dispatch({args.head_dim, args.value_head_dim}, [&]<int kHeadDim, int kHeadDimV> {
    return sm90::forward<kHeadDim, kHeadDimV>(args, multiprocessors(device), stream);
  });
}

Error means_sm90(Arguments const& args, int device, cudaStream_t stream) {
  return MeanHeadDims::dispatch({args.head_dim, args.value_head_dim}, [&]<int kHeadDim, int kHeadDimV> {
    return sm90::forward_with_means<kHeadDim, kHeadDimV>(args, multiprocessors(device), stream);
  });
}

// What left-out keys of every query block give.
struct Rest {
  Tensor value, share, level;
  double part;
};

// takes_means: dropped blocks count by their means.
std::tuple<Tensor, Tensor> attend(Forward forward, bool takes_means, BlockSparseAttention<Tensor> call,
                                  std::optional<Rest> rest = std::nullopt) {
  using torch::headeronly::ScalarType;
  int const device = call.query.get_device();
  torch::stable::accelerator::DeviceGuard const guard(device);
  cudaStream_t const stream = current_stream(device);

  Tensor const query = readable(call.query), key = readable(call.key), value = readable(call.value);
  Tensor const block_mask = torch::stable::contiguous(call.block_mask);
  std::optional<Tensor> const query_segment = contiguous(call.query_segment);
  std::optional<Tensor> key_segment = contiguous(call.key_segment);
  std::optional<Tensor> const sinks = contiguous(call.sinks);

  Arguments args{};
  set_rows_and_keys(args, query, key, call.options);
  args.value = value.const_data_ptr();
  args.value_strides = strides_of(value);
  args.value_head_dim = int(value.size(3));
  args.window = int(call.options.window);
  args.causal = call.options.causal;
  args.scale = float(call.options.scale);

  Tensor const out = torch::stable::new_empty(query, {query.size(0), query.size(2), query.size(1), value.size(3)});
  Tensor const lse = torch::stable::new_empty(query, {query.size(0), query.size(1), query.size(2)}, ScalarType::Float);
  args.out = out.mutable_data_ptr();
  args.lse = static_cast<float*>(lse.mutable_data_ptr());

  if (sinks) {
    args.sinks = static_cast<float const*>(sinks->const_data_ptr());
    args.sink_stride = broadcast_stride(*sinks, 0);
  }
  args.block_mask = static_cast<uint32_t const*>(block_mask.const_data_ptr());
  args.mask_batch_stride = broadcast_stride(block_mask, 0);
  args.mask_head_stride = broadcast_stride(block_mask, 1);
  args.mask_words = int(block_mask.size(3));
  args.block_q = int(call.options.block_q);
  args.block_k = int(call.options.block_k);
  if (rest) {
    rest->value = readable(torch::stable::contiguous(rest->value));
    rest->share = torch::stable::contiguous(rest->share);
    rest->level = torch::stable::contiguous(rest->level);
    args.rest_value = static_cast<float const*>(rest->value.const_data_ptr());
    args.rest_share = static_cast<float const*>(rest->share.const_data_ptr());
    args.rest_level = static_cast<float const*>(rest->level.const_data_ptr());
    args.rest_part = float(rest->part);
  }

  // Without a key_segment every key is in segment 0, and without both nothing is cut.
  if (query_segment && !key_segment) {
    key_segment = torch::stable::new_zeros(query, {1, key.size(2)}, ScalarType::Int);
  }
  int64_t query_ranges = 0, key_ranges = 0;
  if (key_segment) {
    args.key_segment = static_cast<int32_t const*>(key_segment->const_data_ptr());
    args.key_segment_stride = broadcast_stride(*key_segment, 0);
    key_ranges = key_segment->size(0) * args.key_runs();
    query_ranges = args.q_tiles();
    if (query_segment) {
      args.query_segment = static_cast<int32_t const*>(query_segment->const_data_ptr());
      args.query_segment_stride = broadcast_stride(*query_segment, 0);
      query_ranges *= query_segment->size(0);
    }
  }
  if (args.tiles() == 0) return {torch::stable::transpose(out, 1, 2), lse};

  Tensor const memory = workspace(query, 2 * (args.tiles() + key_ranges + query_ranges) + args.tiles() + 1);
  auto* position = static_cast<int32_t*>(memory.mutable_data_ptr());
  args.work = reinterpret_cast<WorkItem*>(position);
  args.key_range = reinterpret_cast<SegmentRange*>(position += 2 * args.tiles());
  args.query_range = reinterpret_cast<SegmentRange*>(position += 2 * key_ranges);
  args.tile_blocks = position += 2 * query_ranges;
  args.next_work = position + args.tiles();

  std::optional<Tensor> mean_key, mean_value, mean_terms;
  if (takes_means) {
    int64_t const blocks = args.key_blocks();
    mean_key = torch::stable::new_empty(key, {key.size(0), key.size(1), blocks, key.size(3)});
    mean_value = torch::stable::new_empty(value, {key.size(0), key.size(1), blocks, value.size(3)});
    mean_terms = torch::stable::new_empty(key, {key.size(0), key.size(1), blocks, 2}, ScalarType::Float);
    args.mean_key = mean_key->mutable_data_ptr();
    args.mean_value = mean_value->mutable_data_ptr();
    args.mean_terms = static_cast<float*>(mean_terms->mutable_data_ptr());
    check(to_error(average_blocks(args, stream)), "block_mean_attention");
  }
  check(to_error(build_work_list(args, stream)), "block_sparse_attention");
  check(forward(args, device, stream), "block_sparse_attention");
  return {torch::stable::transpose(out, 1, 2), lse};
}

std::tuple<Tensor, Tensor> block_sparse_attention(BlockSparseAttention<Tensor> call) {
  return attend(forward_sm90, false, std::move(call));
}

std::tuple<Tensor, Tensor> block_mean_attention(BlockMeanAttention<Tensor> call) {
  BlockSparseAttentionOptions const options{call.scale, true, call.q_offset, 0, call.block_q, call.block_k};
  return attend(
      means_sm90, true,
      {call.query, call.key, call.value, call.block_mask, std::nullopt, call.key_segment, call.sinks, options});
}

std::tuple<Tensor, Tensor> block_rest_attention(BlockRestAttention<Tensor> call) {
  BlockRestAttentionOptions const& of = call.options;
  BlockSparseAttentionOptions const options{of.scale, true, of.q_offset, 0, of.block_q, of.block_k, of.q_stride};
  return attend(
      forward_sm90, false,
      {call.query, call.key, call.value, call.block_mask, std::nullopt, call.key_segment, call.sinks, options},
      Rest{call.rest_value, call.rest_share, call.rest_level, of.part});
}

}  // namespace

// A namespace of its own: kernels/choice.py chooses between these and the portable implementations.
STABLE_TORCH_LIBRARY_FRAGMENT(sampleattn_cuda, library) {
  define<BlockSparseAttention<Tensor>>(library, "block_sparse_attention_sm90");
  define<BlockMeanAttention<Tensor>>(library, "block_mean_attention_sm90");
  define<BlockRestAttention<Tensor>>(library, "block_rest_attention_sm90");
}

STABLE_TORCH_LIBRARY_IMPL(sampleattn_cuda, CUDA, library) {
  implement<BlockSparseAttention<Tensor>, block_sparse_attention>(library, "block_sparse_attention_sm90");
  implement<BlockMeanAttention<Tensor>, block_mean_attention>(library, "block_mean_attention_sm90");
  implement<BlockRestAttention<Tensor>, block_rest_attention>(library, "block_rest_attention_sm90");
}
