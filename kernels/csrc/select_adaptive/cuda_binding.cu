// Selection by landmarks as an op of the namespace sampleattn_cuda, on the LibTorch Stable ABI.
#include <algorithm>
#include <cmath>
#include <optional>

#include "select_adaptive/arguments.h"
#include "select_adaptive/sm90/select.h"
#include "shared/binding.h"
#include "shared/cuda/head_dims.h"
#include "shared/cuda/tensors.h"
#include "shared/cuda/visible_blocks.h"

namespace {

using namespace sampleattn;

// Memory for the squares of two rounds. Prompts of over a million tokens get fewer thread blocks instead of more.
constexpr int64_t kSquareBytes = int64_t(1280) << 20;
constexpr int64_t kQuadWords = 2 * 512;  // two items of two tiles of 128 rows, two rows a word, four blocks

Error select_sm90(adaptive::Arguments const& args, int thread_blocks, cudaStream_t stream) {
  return SelectionHeadDims::dispatch({args.head_dim, args.head_dim}, [&]<int kHeadDim, int> {
    return sm90::adaptive::select<kHeadDim>(args, thread_blocks, stream);
  });
}

Tensor select_adaptive(SelectAdaptive<Tensor> call) {
  using torch::headeronly::ScalarType;
  SelectAdaptiveOptions const& options = call.options;
  int const device = call.query.get_device();
  torch::stable::accelerator::DeviceGuard const guard(device);
  cudaStream_t const stream = current_stream(device);
  STD_TORCH_CHECK(options.block_q == kBlock && options.block_k == kBlock,
                  "select_adaptive_sm90: blocks must be 128 x 128, got ", options.block_q, " x ", options.block_k);

  Tensor const query = readable(call.query), key = readable(call.key);
  Tensor const representatives = torch::stable::contiguous(call.representatives);
  Tensor const log_weights = torch::stable::contiguous(call.log_weights);
  Tensor const spreads = torch::stable::contiguous(call.spreads);
  std::optional<Tensor> const key_segment = contiguous(call.key_segment), sinks = contiguous(call.sinks);

  adaptive::Arguments args{};
  set_rows_and_keys(args, query, key, options);
  args.representatives = representatives.const_data_ptr();
  args.log_weights = static_cast<float const*>(log_weights.const_data_ptr());
  args.spreads = static_cast<float const*>(spreads.const_data_ptr());
  if (key_segment) {
    args.key_segment = static_cast<int32_t const*>(key_segment->const_data_ptr());
    args.key_segment_stride = broadcast_stride(*key_segment, 0);
  }
  set_sinks(args, sinks);
  args.members = int(representatives.size(2));
  args.window_slashes = int(options.window_slashes);
  args.last_rows = int(std::min<int64_t>(options.last_rows, args.q_len));
  args.keep_sink = options.keep_sink;
  args.scale = float(options.scale);
  args.scale_log2 = args.scale * adaptive::kLog2E;
  args.whole_number = std::log2(float(kBlock - args.members + 1));
  args.tau_squared = float(options.tau) * float(options.tau);
  args.mask_words = mask_words(args.n());

  args.item_count = args.items();
  args.quad_count = args.quads();

  Tensor const block_mask =
      torch::stable::new_empty(query, {args.batch, args.q_heads, args.q_blocks(), args.mask_words}, ScalarType::Int);
  args.block_mask = static_cast<uint32_t*>(block_mask.mutable_data_ptr());
  if (args.item_count == 0) return block_mask;

  int64_t const square_words = args.quad_count * kQuadWords;
  int64_t const affordable = std::max<int64_t>(kSquareBytes / (4 * std::max<int64_t>(square_words, 1)), 1);
  int const thread_blocks = int(std::min<int64_t>({args.item_count, multiprocessors(device), affordable}));
  int64_t const entries = args.visibilities();
  int64_t const visible_words = key_segment ? 2 * entries + (entries * args.n() + 3) / 4 : 0;
  int64_t const represented = int64_t(args.batch) * args.kv_heads * args.quad_count * 4;  // blocks
  int64_t const code_words = represented * args.members * args.head_dim / 4, term_words = represented * 2;
  Tensor const memory = workspace(query, code_words + term_words + thread_blocks * square_words + visible_words);
  auto* position = static_cast<int32_t*>(memory.mutable_data_ptr());
  args.codes = reinterpret_cast<int8_t*>(position);
  args.code_terms = reinterpret_cast<float*>(position += code_words);
  args.squares = reinterpret_cast<uint32_t*>(position += term_words);
  if (key_segment) {
    args.sinks = position += thread_blocks * square_words;
    args.row_ends = position += entries;
    args.visible = reinterpret_cast<uint8_t*>(position + entries);
    args.visible_stride = entries > 1 ? args.n() : 0;
    VisibleBlocks const visible{args.key_segment, args.key_segment_stride, args.batch,  args.q_len,
                                args.kv_len,      args.q_offset,           args.q_gap,  args.keep_sink,
                                args.sinks,       args.row_ends,           args.visible};
    check(find_visible_blocks(visible, stream), "select_adaptive");
  }
  check(select_sm90(args, thread_blocks, stream), "select_adaptive");
  return block_mask;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sampleattn_cuda, library) {
  define<SelectAdaptive<Tensor>>(library, "select_adaptive_sm90");
}

STABLE_TORCH_LIBRARY_IMPL(sampleattn_cuda, CUDA, library) {
  implement<SelectAdaptive<Tensor>, select_adaptive>(library, "select_adaptive_sm90");
}
