// What all CPU bindings share: tensors in, views out.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <initializer_list>
#include <optional>
#include <string>

#include "shared/cpu/types.h"

namespace sampleattn::cpu {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t i = 0; i < tensor.dim(); ++i) text += (i ? ", " : "") + std::to_string(tensor.size(i));
  return text + "]";
}

inline Dtype dtype_of(const char* op, const Tensor& query) {
  switch (query.scalar_type()) {
    case ScalarType::Float: return Dtype::f32;
    case ScalarType::BFloat16: return Dtype::bf16;
    case ScalarType::Half: return Dtype::f16;
    default: STD_TORCH_CHECK(false, op, ": 'query' must be float32, bfloat16 or float16");
  }
}

// What the kernels rely on; the Python wrappers say more about what is allowed.
inline void check_4d(const char* op, const char* name, const Tensor& tensor, const Tensor& query) {
  STD_TORCH_CHECK(tensor.dim() == 4 && tensor.is_cpu(), op, ": '", name, "' must be a 4-D CPU tensor, got ",
                  shape(tensor));
  STD_TORCH_CHECK(tensor.scalar_type() == query.scalar_type(), op, ": '", name, "' must have query's dtype");
}

inline void check_value(const char* op, const Tensor& value, const Tensor& key, const Tensor& query) {
  check_4d(op, "value", value, query);
  STD_TORCH_CHECK(value.size(0) == key.size(0) && value.size(1) == key.size(1) && value.size(2) == key.size(2), op,
                  ": 'value' must have key's batch, heads and length; key ", shape(key), ", value ", shape(value));
}

inline void check_block_sizes(const char* op, int64_t block_q, int64_t block_k) {
  for (int64_t block : {block_q, block_k}) {
    STD_TORCH_CHECK(block == 16 || block == 32 || block == 64 || block == 128, op,
                    ": block sizes must be one of 16, 32, 64, 128, got ", block);
  }
}

inline Tensor last_dim_contiguous(const Tensor& tensor) {
  return tensor.stride(3) == 1 || tensor.size(3) <= 1 ? tensor : torch::stable::contiguous(tensor);
}

inline View view(const Tensor& tensor, Dtype dtype) {
  return {static_cast<char*>(tensor.data_ptr()), dtype, tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

inline Sizes sizes_of(const char* op, const Tensor& query, const Tensor& key, int64_t block_q, int64_t block_k) {
  check_4d(op, "query", query, query);
  check_4d(op, "key", key, query);
  STD_TORCH_CHECK(key.size(0) == query.size(0) && key.size(3) == query.size(3) && key.size(1) > 0 &&
                      query.size(1) % key.size(1) == 0,
                  op, ": 'key' must have query's batch and head_dim, and heads that divide query's; query ",
                  shape(query), ", key ", shape(key));
  check_block_sizes(op, block_q, block_k);
  return {query.size(0), query.size(1), key.size(1), query.size(2), key.size(2), query.size(3), 0, block_q, block_k};
}

inline Segments segments_of(const char* op, const char* name, std::optional<Tensor>& tensor, int64_t batch,
                            int64_t length) {
  if (!tensor) return {};
  STD_TORCH_CHECK(tensor->dim() == 2 && tensor->is_cpu() && tensor->scalar_type() == ScalarType::Int &&
                      (tensor->size(0) == 1 || tensor->size(0) == batch) && tensor->size(1) == length,
                  op, ": '", name, "' must be an int32 CPU tensor [1 or ", batch, ", ", length, "], got ",
                  shape(*tensor));
  if (tensor->size(1) > 1 && tensor->stride(1) != 1) tensor = torch::stable::contiguous(*tensor);
  return {tensor->const_data_ptr<int32_t>(), tensor->size(0) == 1 ? 0 : tensor->stride(0)};
}

inline Sinks sinks_of(const char* op, const std::optional<Tensor>& tensor, const Sizes& sizes) {
  if (!tensor) return {};
  STD_TORCH_CHECK(tensor->dim() == 1 && tensor->is_cpu() && tensor->scalar_type() == ScalarType::Float &&
                      (tensor->size(0) == sizes.q_heads || tensor->size(0) == 1),
                  op, ": 'sinks' must be a float32 CPU tensor [", sizes.q_heads, "] or [1], got ", shape(*tensor));
  return {tensor->const_data_ptr<float>(), tensor->size(0) > 1 ? tensor->stride(0) : 0};
}

inline BlockMask block_mask_of(const char* op, Tensor& mask, const Sizes& sizes) {
  const int64_t words = mask_words(sizes.key_blocks());
  STD_TORCH_CHECK(mask.dim() == 4 && mask.is_cpu() && mask.scalar_type() == ScalarType::Int &&
                      (mask.size(0) == 1 || mask.size(0) == sizes.batch) &&
                      (mask.size(1) == 1 || mask.size(1) == sizes.q_heads) && mask.size(2) == sizes.query_blocks() &&
                      mask.size(3) == words,
                  op, ": 'block_mask' must be an int32 CPU tensor [1 or ", sizes.batch, ", 1 or ", sizes.q_heads, ", ",
                  sizes.query_blocks(), ", ", words, "], got ", shape(mask));
  if (mask.stride(3) != 1) mask = torch::stable::contiguous(mask);
  return {reinterpret_cast<const uint32_t*>(mask.const_data_ptr<int32_t>()), mask.size(0) == 1 ? 0 : mask.stride(0),
          mask.size(1) == 1 ? 0 : mask.stride(1), mask.stride(2)};
}

inline Tensor empty(const Tensor& like, std::initializer_list<int64_t> size, std::optional<ScalarType> dtype = {}) {
  return torch::stable::new_empty(like, {size.begin(), size.size()}, dtype);
}

inline constexpr auto parallel_for = [](int64_t n, const auto& f) { torch::stable::parallel_for(0, n, 1, f); };

// [B, Hq, n_query_blocks, n_words]
inline Tensor empty_block_mask(const Tensor& query, const Sizes& sizes) {
  return empty(query, {sizes.batch, sizes.q_heads, sizes.query_blocks(), mask_words(sizes.key_blocks())},
               ScalarType::Int);
}

inline uint32_t* words_of(const Tensor& block_mask) {
  return reinterpret_cast<uint32_t*>(block_mask.mutable_data_ptr<int32_t>());
}

}  // namespace sampleattn::cpu
