// What all bindings share: tensors in, raw pointers and strides out.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/shim_utils.h>

#include <optional>

#include "shared/cuda/error.h"
#include "shared/cuda/types.h"

namespace sampleattn {

using torch::stable::Tensor;

inline void check(Error const& error, char const* op) {
  STD_TORCH_CHECK(!error, op, ": ", error.what, " (", error.code, ")");
}

// The kernels read rows of any strides that are multiples of 16 bytes; anything else is copied first.
inline Tensor readable(Tensor const& tensor) {
  bool fits = tensor.stride(3) == 1 && reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0;
  for (int i = 0; i < 3; ++i) {
    fits = fits && (tensor.size(i) == 1 || (tensor.stride(i) > 0 && tensor.stride(i) % 8 == 0));
  }
  return fits ? tensor : torch::stable::clone(torch::stable::contiguous(tensor));
}

inline std::optional<Tensor> contiguous(std::optional<Tensor> const& tensor) {
  return tensor ? std::optional(torch::stable::contiguous(*tensor)) : std::nullopt;
}

// Strides in elements; of a dimension of size 1 any stride will do, so it gets one that the copy engine takes.
inline Strides strides_of(Tensor const& tensor) {
  auto stride = [&](int i) { return tensor.size(i) == 1 ? tensor.size(3) : tensor.stride(i); };
  return {stride(0), stride(1), stride(2)};
}

inline int64_t broadcast_stride(Tensor const& tensor, int dim) {
  return tensor.size(dim) == 1 ? 0 : tensor.stride(dim);
}

inline Tensor workspace(Tensor const& like, int64_t elements) {
  return torch::stable::new_empty(like, {elements}, torch::headeronly::ScalarType::Int);
}

inline cudaStream_t current_stream(int device) {
  void* stream = nullptr;
  // STABLE_TORCH_ERROR_CODE_CHECK says more of the error, but torch 2.11 does not have it.
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

inline int multiprocessors(int device) {
  int count = 0;
  check(to_error(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device)), "multiprocessors");
  return count;
}

inline DataType data_type(Tensor const& tensor) {
  return tensor.scalar_type() == torch::headeronly::ScalarType::BFloat16 ? DataType::kBFloat16 : DataType::kFloat16;
}

// What the arguments of every kernel over query rows and keys have: pointers, strides, sizes, and where rows stand.
template <class Arguments, class Options>
void set_rows_and_keys(Arguments& args, Tensor const& query, Tensor const& key, Options const& options) {
  args.query = query.const_data_ptr();
  args.key = key.const_data_ptr();
  args.query_strides = strides_of(query);
  args.key_strides = strides_of(key);
  args.batch = int(query.size(0));
  args.q_heads = int(query.size(1));
  args.kv_heads = int(key.size(1));
  args.q_len = int(query.size(2));
  args.kv_len = int(key.size(2));
  args.head_dim = int(query.size(3));
  args.q_offset = int(options.q_offset);
  args.q_gap = int((options.q_stride - 1) * options.block_q);
  args.dtype = data_type(query);
}

// The sinks of a selection; the tensor must be contiguous, and outlive the arguments.
template <class Arguments>
void set_sinks(Arguments& args, std::optional<Tensor> const& sinks) {
  if (!sinks) return;
  args.sink_logits = static_cast<float const*>(sinks->const_data_ptr());
  args.sink_logit_stride = broadcast_stride(*sinks, 0);
}

}  // namespace sampleattn
