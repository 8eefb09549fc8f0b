// From a call's tensors to the arguments of kernels that score rows by representatives, and their workspace.
#pragma once

#include <algorithm>
#include <optional>

#include "select_adaptive/cuda/arguments.h"
#include "shared/cuda/tensors.h"
#include "shared/cuda/visible_blocks.h"

namespace sampleattn::adaptive {

// The tensors that the arguments point into.
struct ReadableTensors {
  Tensor query, key, representatives, log_weights, spreads;
  std::optional<Tensor> key_segment, sinks;

  template <class Call>
  ReadableTensors(char const* op, Call const& call)
      : query(readable(call.query)), key(readable(call.key)),
        representatives(torch::stable::contiguous(call.representatives)),
        log_weights(torch::stable::contiguous(call.log_weights)), spreads(torch::stable::contiguous(call.spreads)),
        key_segment(contiguous(call.key_segment)), sinks(contiguous(call.sinks)) {
    STD_TORCH_CHECK(call.options.block_q == kBlock && call.options.block_k == kBlock, op,
                    ": blocks must be 128 x 128, got ", call.options.block_q, " x ", call.options.block_k);
  }

  template <class Options>
  void set(Arguments& args, Options const& options) const {
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
    args.scale_log2 = args.scale * kLog2E;
    args.mask_words = mask_words(args.n());
    args.item_count = args.items();
    args.quad_count = args.quads();
  }
};

// The result, which the arguments point to from then on.
inline Tensor new_block_mask(Arguments& args, Tensor const& query) {
  Tensor const block_mask = torch::stable::new_empty(
      query, {args.batch, args.q_heads, args.q_blocks(), args.mask_words}, torch::headeronly::ScalarType::Int);
  args.block_mask = static_cast<uint32_t*>(block_mask.mutable_data_ptr());
  return block_mask;
}

// Workspace in words of 32 bits: of the codes and what they are worth,
inline int64_t represented_blocks(Arguments const& args) {
  return int64_t(args.batch) * args.kv_heads * args.quad_count * 4;
}
inline int64_t code_words(Arguments const& args) {
  return represented_blocks(args) * (args.members * args.head_dim / 4 + 2);
}
// and of what is known of padding.
inline int64_t visible_words(Arguments const& args) {
  int64_t const entries = args.visibilities();
  return args.key_segment ? 2 * entries + (entries * args.n() + 3) / 4 : 0;
}

// Returns what lies behind the codes and their terms.
inline int32_t* place_codes(Arguments& args, int32_t* position) {
  int64_t const blocks = represented_blocks(args);
  args.codes = reinterpret_cast<int8_t*>(position);
  args.code_terms = reinterpret_cast<float*>(position += blocks * args.members * args.head_dim / 4);
  return position + blocks * 2;
}

// Fills what is known of padding, if there is any. keep_sink: see VisibleBlocks.
inline Error find_visible(Arguments& args, bool keep_sink, int32_t* position, cudaStream_t stream) {
  if (!args.key_segment) return {};
  int64_t const entries = args.visibilities();
  args.sinks = position;
  args.row_ends = position += entries;
  args.visible = reinterpret_cast<uint8_t*>(position + entries);
  args.visible_stride = entries > 1 ? args.n() : 0;
  return find_visible_blocks({args.key_segment, args.key_segment_stride, args.batch, args.q_len, args.kv_len,
                              args.q_offset, args.q_gap, keep_sink, args.sinks, args.row_ends, args.visible},
                             stream);
}

}  // namespace sampleattn::adaptive
