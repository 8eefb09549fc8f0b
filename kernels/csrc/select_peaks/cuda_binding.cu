// Selection by landmarks' largest shares as an op of the namespace sampleattn_cuda, on the LibTorch Stable ABI.
#include <algorithm>
#include <cmath>
#include <optional>

#include "select_adaptive/cuda/set_arguments.h"
#include "select_peaks/arguments.h"
#include "select_peaks/cuda/forced.h"
#include "select_peaks/sm90/select.h"
#include "shared/binding.h"
#include "shared/cuda/head_dims.h"

namespace {

using namespace sampleattn;

Error select_sm90(peaks::Arguments const& args, int thread_blocks, cudaStream_t stream) {
  return SelectionHeadDims::dispatch({args.head_dim, args.head_dim}, [&]<int kHeadDim, int> {
    return sm90::peaks::select<kHeadDim>(args, thread_blocks, stream);
  });
}

Tensor select_peaks(SelectPeaks<Tensor> call) {
  constexpr char kOp[] = "select_peaks_sm90";
  int const device = call.query.get_device();
  torch::stable::accelerator::DeviceGuard const guard(device);
  cudaStream_t const stream = current_stream(device);
  adaptive::ReadableTensors const tensors(kOp, call);
  peaks::Arguments args{};
  tensors.set(args, call.options);
  double const peak = call.options.peak;
  args.log2_peak = float(std::log2(peak));

  Tensor const block_mask = adaptive::new_block_mask(args, call.query);
  if (args.item_count == 0) return block_mask;
  int64_t const stand_in_rows = int64_t(args.batch) * args.kv_heads * args.stand_in_rows();
  int64_t const stand_in_words = stand_in_rows * args.head_dim / 2;
  int64_t const words = adaptive::code_words(args) + stand_in_words + stand_in_rows * 2 + adaptive::visible_words(args);
  Tensor const memory = workspace(call.query, words);
  int32_t* position = adaptive::place_codes(args, static_cast<int32_t*>(memory.mutable_data_ptr()));
  args.stand_ins = position;
  args.stand_in_terms = reinterpret_cast<float*>(position += stand_in_words);
  // The first block is that whether or not it is kept.
  check(adaptive::find_visible(args, true, position + stand_in_rows * 2, stream), kOp);
  check(peaks::write_forced(args, peak <= 0.0, stream), kOp);
  if (peak > 0.0) check(select_sm90(args, std::min(args.item_count, multiprocessors(device)), stream), kOp);
  return block_mask;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sampleattn_cuda, library) { define<SelectPeaks<Tensor>>(library, "select_peaks_sm90"); }

STABLE_TORCH_LIBRARY_IMPL(sampleattn_cuda, CUDA, library) {
  implement<SelectPeaks<Tensor>, select_peaks>(library, "select_peaks_sm90");
}
