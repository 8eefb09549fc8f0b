// Selection by a budget as ops of the namespace sampleattn_cuda, on the LibTorch Stable ABI.
#include <algorithm>
#include <bit>
#include <optional>
#include <tuple>

#include "select_budget/arguments.h"
#include "select_budget/cuda/bits.h"
#include "select_budget/sampled_rows.h"
#include "select_budget/sm90/score.h"
#include "select_budget_rest/arguments.h"
#include "select_budget_rest/cuda/rest.h"
#include "shared/binding.h"
#include "shared/cuda/head_dims.h"
#include "shared/cuda/tensors.h"
#include "shared/cuda/visible_blocks.h"

namespace {

using namespace sampleattn;

constexpr int64_t kLogBytes = int64_t(256) << 20;  // of a batch of query blocks
constexpr double kLog2E = 1.4426950408889634;

Error score_sm90(budget::Arguments const& args, int multiprocessors, cudaStream_t stream) {
  return BudgetHeadDims::dispatch({args.head_dim, args.head_dim}, [&]<int kHeadDim, int> {
    return sm90::budget::score<kHeadDim>(args, multiprocessors, stream);
  });
}

// Fills `args` but for its workspace. Pointers in it are of the tensors; errors name `op`.
void set_arguments(char const* op, budget::Arguments& args, Tensor const& query, Tensor const& key,
                   std::optional<Tensor> const& key_segment, std::optional<Tensor> const& sinks,
                   SelectBudgetOptions const& options) {
  STD_TORCH_CHECK(options.block_q == kBlock && options.block_k == kBlock, op, ": blocks must be 128 x 128, got ",
                  options.block_q, " x ", options.block_k);
  set_rows_and_keys(args, query, key, options);
  if (key_segment) {
    args.key_segment = static_cast<int32_t const*>(key_segment->const_data_ptr());
    args.key_segment_stride = broadcast_stride(*key_segment, 0);
  }
  set_sinks(args, sinks);
  args.window_slashes = int(options.window_slashes);
  args.rows_log2 = std::countr_zero(uint64_t(rows_of_a_block<int64_t>(options.rows, args.kv_len, kBlock)));
  args.keep_sink = options.keep_sink;
  args.scale_log2 = float(options.scale * kLog2E);
  args.budget = float(options.budget);
  args.tau_squared = float(options.tau) * float(options.tau);
  args.mask_words = mask_words(args.n());
  STD_TORCH_CHECK(args.n() <= budget::kMostKeyBlocks, op, ": 'key' has ", args.kv_len, " keys, at most ",
                  budget::kMostKeyBlocks * kBlock, " are allowed");
}

// The index, and what `rest` asks for if it is not null.
Tensor select(budget::Arguments& args, budget::Rest* rest, Tensor const& query, int device, cudaStream_t stream) {
  using torch::headeronly::ScalarType;
  Tensor const block_mask =
      torch::stable::new_empty(query, {args.batch, args.q_heads, args.q_blocks(), args.mask_words}, ScalarType::Int);
  args.block_mask = static_cast<uint32_t*>(block_mask.mutable_data_ptr());
  if (args.batch * args.q_heads * args.q_blocks() == 0) return block_mask;

  // Query blocks of a batch: as many as the workspace holds, in whole strips.
  int64_t const blocks_of_a_strip = std::max(budget::kStripRows >> args.rows_log2, 1);
  int64_t const strips_of_blocks = std::max((args.rows() + budget::kStripRows - 1) / budget::kStripRows, 1);
  int64_t const strip_words = int64_t(args.n()) * budget::kStripRows * 2 * args.batch * args.q_heads;
  int64_t const affordable = kLogBytes / (4 * std::max<int64_t>(strip_words * strips_of_blocks, 1));
  int const at_a_time = int(std::min<int64_t>(std::max<int64_t>(affordable, 1) * blocks_of_a_strip, args.q_blocks()));
  args.query_blocks = at_a_time;
  args.visibilities = args.key_segment && args.key_segment_stride ? args.batch : 1;
  int64_t const visible_words = args.key_segment ? args.visibilities * (1 + (int64_t(args.n()) + 3) / 4) : 0;
  Tensor const memory = workspace(query, args.strips() * strip_words + visible_words);
  auto* const words = static_cast<int32_t*>(memory.mutable_data_ptr());
  args.logs = reinterpret_cast<float*>(words);
  if (args.key_segment) {
    int32_t* const sinks = words + args.strips() * strip_words;
    uint8_t* const visible = reinterpret_cast<uint8_t*>(sinks + args.visibilities);
    args.sinks = sinks;
    args.visible = visible;
    VisibleBlocks const blocks{
        args.key_segment, args.key_segment_stride, args.batch, args.q_len, args.kv_len, args.q_offset,
        args.q_gap,       args.keep_sink,          sinks,      nullptr,    visible};
    check(find_visible_blocks(blocks, stream), "select_budget");
  }
  std::optional<Tensor> shares;
  if (rest) {
    int64_t const rows = int64_t(args.batch) * args.q_heads * at_a_time;
    shares = torch::stable::new_empty(query, {rows, budget::rest_pitch(args)}, ScalarType::Float);
    rest->shares = static_cast<float*>(shares->mutable_data_ptr());
  }
  int const processors = multiprocessors(device);
  for (args.first_query_block = 0; args.first_query_block < args.q_blocks(); args.first_query_block += at_a_time) {
    args.query_blocks = std::min(at_a_time, args.q_blocks() - args.first_query_block);
    check(score_sm90(args, processors, stream), "select_budget");
    check(budget::write_bits(args, rest, stream), "select_budget");
    if (rest) check(budget::sum_values(args, *rest, stream), "select_budget_rest");
  }
  return block_mask;
}

Tensor select_budget(SelectBudget<Tensor> call) {
  int const device = call.query.get_device();
  torch::stable::accelerator::DeviceGuard const guard(device);
  Tensor const query = readable(call.query), key = readable(call.key);
  std::optional<Tensor> const key_segment = contiguous(call.key_segment), sinks = contiguous(call.sinks);
  budget::Arguments args{};
  set_arguments("select_budget_sm90", args, query, key, key_segment, sinks, call.options);
  return select(args, nullptr, query, device, current_stream(device));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> select_budget_rest(SelectBudgetRest<Tensor> call) {
  using torch::headeronly::ScalarType;
  int const device = call.query.get_device();
  torch::stable::accelerator::DeviceGuard const guard(device);
  cudaStream_t const stream = current_stream(device);
  Tensor const query = readable(call.query), key = readable(call.key), value = readable(call.value);
  Tensor const block_mask = torch::stable::contiguous(call.block_mask);
  std::optional<Tensor> const key_segment = contiguous(call.key_segment), sinks = contiguous(call.sinks);
  budget::Arguments args{};
  set_arguments("select_budget_rest_sm90", args, query, key, key_segment, sinks, call.options);

  budget::Rest rest{};
  rest.block_mask = static_cast<uint32_t const*>(block_mask.const_data_ptr());
  rest.mask_batch_stride = broadcast_stride(block_mask, 0);
  rest.mask_head_stride = broadcast_stride(block_mask, 1);
  rest.value = value.const_data_ptr();
  rest.value_strides = strides_of(value);
  rest.value_head_dim = int(value.size(3));
  Tensor const mean_value = torch::stable::new_empty(value, {args.batch, args.kv_heads, args.n(), rest.value_head_dim});
  rest.mean_value = mean_value.mutable_data_ptr();

  Tensor const rest_value = torch::stable::new_empty(
      query, {args.batch, args.q_heads, args.q_blocks(), rest.value_head_dim}, ScalarType::Float);
  Tensor const rest_share =
      torch::stable::new_empty(query, {args.batch, args.q_heads, args.q_blocks()}, ScalarType::Float);
  Tensor const rest_level = torch::stable::empty_like(rest_share);
  rest.rest_value = static_cast<float*>(rest_value.mutable_data_ptr());
  rest.rest_share = static_cast<float*>(rest_share.mutable_data_ptr());
  rest.rest_level = static_cast<float*>(rest_level.mutable_data_ptr());
  check(budget::average_values(args, rest, stream), "select_budget_rest");
  return {select(args, &rest, query, device, stream), rest_value, rest_share, rest_level};
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(sampleattn_cuda, library) {
  define<SelectBudget<Tensor>>(library, "select_budget_sm90");
  define<SelectBudgetRest<Tensor>>(library, "select_budget_rest_sm90");
}

STABLE_TORCH_LIBRARY_IMPL(sampleattn_cuda, CUDA, library) {
  implement<SelectBudget<Tensor>, select_budget>(library, "select_budget_sm90");
  implement<SelectBudgetRest<Tensor>, select_budget_rest>(library, "select_budget_rest_sm90");
}
