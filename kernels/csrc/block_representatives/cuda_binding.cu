// Landmarks and means of key blocks as an op of the namespace sampleattn_cuda, on the LibTorch Stable ABI.
#include <optional>
#include <tuple>

#include "block_representatives/arguments.h"
#include "block_representatives/cuda/represent.h"
#include "shared/binding.h"
#include "shared/cuda/tensors.h"
#include "shared/cuda/visible_blocks.h"

namespace {

using namespace sampleattn;

std::tuple<Tensor, Tensor, Tensor> block_representatives(BlockRepresentatives<Tensor> call) {
  using torch::headeronly::ScalarType;
  int const device = call.key.get_device();
  torch::stable::accelerator::DeviceGuard const guard(device);
  cudaStream_t const stream = current_stream(device);
  STD_TORCH_CHECK(call.block_k == kBlock, "block_representatives_cuda: block_k must be 128, got ", call.block_k);

  Tensor const key = readable(call.key);
  adaptive::RepresentativeArguments args{};
  args.key = key.const_data_ptr();
  args.key_strides = strides_of(key);
  args.batch = int(key.size(0));
  args.kv_heads = int(key.size(1));
  args.kv_len = int(key.size(2));
  args.head_dim = int(key.size(3));
  args.landmarks = int(call.landmarks);
  args.dtype = data_type(key);

  int64_t const blocks = (args.kv_len + kBlock - 1) / kBlock, members = 1 + call.landmarks;
  Tensor const representatives =
      torch::stable::new_empty(key, {args.batch, args.kv_heads, members, blocks, args.head_dim});
  auto floats = [&] {
    return torch::stable::new_empty(key, {args.batch, args.kv_heads, members, blocks}, ScalarType::Float);
  };
  Tensor const log_weights = floats(), spreads = floats();
  args.representatives = representatives.mutable_data_ptr();
  args.log_weights = static_cast<float*>(log_weights.mutable_data_ptr());
  args.spreads = static_cast<float*>(spreads.mutable_data_ptr());
  if (blocks * args.batch * args.kv_heads == 0) return {representatives, log_weights, spreads};

  Tensor memory = key;  // holds what the kernel reads until it is launched
  std::optional<Tensor> const key_segment = contiguous(call.key_segment);
  if (key_segment) {
    VisibleBlocks visible{};
    visible.key_segment = args.key_segment = static_cast<int32_t const*>(key_segment->const_data_ptr());
    visible.key_segment_stride = args.key_segment_stride = broadcast_stride(*key_segment, 0);
    visible.batch = args.batch;
    visible.kv_len = args.kv_len;
    visible.keep_sink = true;
    int const entries = visible.entries();
    memory = workspace(key, entries + (entries * blocks + 3) / 4);
    visible.sinks = static_cast<int32_t*>(memory.mutable_data_ptr());
    visible.visible = reinterpret_cast<uint8_t*>(visible.sinks + entries);
    args.first_blocks = visible.sinks;
    args.first_block_stride = entries > 1 ? 1 : 0;
    check(find_visible_blocks(visible, stream), "block_representatives");
  }
  check(adaptive::represent_blocks(args, stream), "block_representatives");
  return {representatives, log_weights, spreads};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sampleattn_cuda, library) {
  define<BlockRepresentatives<Tensor>>(library, "block_representatives_cuda");
}

STABLE_TORCH_LIBRARY_IMPL(sampleattn_cuda, CUDA, library) {
  implement<BlockRepresentatives<Tensor>, block_representatives>(library, "block_representatives_cuda");
}
