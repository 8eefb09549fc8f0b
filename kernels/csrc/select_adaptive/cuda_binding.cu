// Selection by landmarks as an op of the namespace sampleattn_cuda, on the LibTorch Stable ABI.
#include <algorithm>
#include <cmath>

#include "select_adaptive/arguments.h"
#include "select_adaptive/cuda/set_arguments.h"
#include "select_adaptive/sm90/select.h"
#include "shared/binding.h"
#include "shared/cuda/head_dims.h"

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
  constexpr char kOp[] = "select_adaptive_sm90";
  int const device = call.query.get_device();
  torch::stable::accelerator::DeviceGuard const guard(device);
  cudaStream_t const stream = current_stream(device);
  adaptive::ReadableTensors const tensors(kOp, call);
  adaptive::Arguments args{};
  tensors.set(args, call.options);
  args.whole_number = std::log2(float(kBlock - args.members + 1));
  args.tau_squared = float(call.options.tau) * float(call.options.tau);

  Tensor const block_mask = adaptive::new_block_mask(args, call.query);
  if (args.item_count == 0) return block_mask;
  int64_t const square_words = args.quad_count * kQuadWords;
  int64_t const affordable = std::max<int64_t>(kSquareBytes / (4 * std::max<int64_t>(square_words, 1)), 1);
  int const thread_blocks = int(std::min<int64_t>({args.item_count, multiprocessors(device), affordable}));
  int64_t const words = adaptive::code_words(args) + thread_blocks * square_words + adaptive::visible_words(args);
  Tensor const memory = workspace(call.query, words);
  int32_t* const position = adaptive::place_codes(args, static_cast<int32_t*>(memory.mutable_data_ptr()));
  args.squares = reinterpret_cast<uint32_t*>(position);
  check(adaptive::find_visible(args, args.keep_sink, position + thread_blocks * square_words, stream), kOp);
  check(select_sm90(args, thread_blocks, stream), kOp);
  return block_mask;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sampleattn_cuda, library) {
  define<SelectAdaptive<Tensor>>(library, "select_adaptive_sm90");
}

STABLE_TORCH_LIBRARY_IMPL(sampleattn_cuda, CUDA, library) {
  implement<SelectAdaptive<Tensor>, select_adaptive>(library, "select_adaptive_sm90");
}
