// CPU implementations of the ops, on the LibTorch Stable ABI. Schemas live in Python (kernels/dispatch.py).
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <string>
#include <tuple>

#include "block_representatives/cpu.h"
#include "block_sparse_attention/cpu.h"
#include "sample_scores/cpu.h"
#include "select_adaptive/cpu.h"
#include "select_blocks/cpu.h"
#include "select_budget/cpu.h"

namespace {

using namespace sampleattn;
using namespace sampleattn::cpu;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

std::string shape(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t i = 0; i < tensor.dim(); ++i) text += (i ? ", " : "") + std::to_string(tensor.size(i));
  return text + "]";
}

Dtype dtype_of(const char* op, const Tensor& query) {
  switch (query.scalar_type()) {
    case ScalarType::Float: return Dtype::f32;
    case ScalarType::BFloat16: return Dtype::bf16;
    case ScalarType::Half: return Dtype::f16;
    default: STD_TORCH_CHECK(false, op, ": 'query' must be float32, bfloat16 or float16");
  }
}

// What the kernels rely on; the Python wrappers say more about what is allowed.
void check_4d(const char* op, const char* name, const Tensor& tensor, const Tensor& query) {
  STD_TORCH_CHECK(tensor.dim() == 4 && tensor.is_cpu(), op, ": '", name, "' must be a 4-D CPU tensor, got ",
                  shape(tensor));
  STD_TORCH_CHECK(tensor.scalar_type() == query.scalar_type(), op, ": '", name, "' must have query's dtype");
}

void check_block_sizes(const char* op, int64_t block_q, int64_t block_k) {
  for (int64_t block : {block_q, block_k}) {
    STD_TORCH_CHECK(block == 16 || block == 32 || block == 64 || block == 128, op,
                    ": block sizes must be one of 16, 32, 64, 128, got ", block);
  }
}

Tensor last_dim_contiguous(const Tensor& tensor) {
  return tensor.stride(3) == 1 || tensor.size(3) <= 1 ? tensor : torch::stable::contiguous(tensor);
}

View view(const Tensor& tensor, Dtype dtype) {
  return {static_cast<char*>(tensor.data_ptr()), dtype, tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

Sizes sizes_of(const char* op, const Tensor& query, const Tensor& key, int64_t block_q, int64_t block_k) {
  check_4d(op, "query", query, query);
  check_4d(op, "key", key, query);
  STD_TORCH_CHECK(key.size(0) == query.size(0) && key.size(3) == query.size(3) && key.size(1) > 0 &&
                      query.size(1) % key.size(1) == 0,
                  op, ": 'key' must have query's batch and head_dim, and heads that divide query's; query ",
                  shape(query), ", key ", shape(key));
  check_block_sizes(op, block_q, block_k);
  return {query.size(0), query.size(1), key.size(1), query.size(2), key.size(2), query.size(3), 0, block_q, block_k};
}

Segments segments_of(const char* op, const char* name, OptionalTensor& tensor, int64_t batch, int64_t length) {
  if (!tensor) return {};
  STD_TORCH_CHECK(tensor->dim() == 2 && tensor->is_cpu() && tensor->scalar_type() == ScalarType::Int &&
                      (tensor->size(0) == 1 || tensor->size(0) == batch) && tensor->size(1) == length,
                  op, ": '", name, "' must be an int32 CPU tensor [1 or ", batch, ", ", length, "], got ",
                  shape(*tensor));
  if (tensor->size(1) > 1 && tensor->stride(1) != 1) tensor = torch::stable::contiguous(*tensor);
  return {tensor->const_data_ptr<int32_t>(), tensor->size(0) == 1 ? 0 : tensor->stride(0)};
}

BlockMask block_mask_of(const char* op, Tensor& mask, const Sizes& sizes) {
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

Tensor empty(const Tensor& like, std::initializer_list<int64_t> size, std::optional<ScalarType> dtype = {}) {
  return torch::stable::new_empty(like, {size.begin(), size.size()}, dtype);
}

constexpr auto parallel_for = [](int64_t n, const auto& f) { torch::stable::parallel_for(0, n, 1, f); };

std::tuple<Tensor, Tensor> block_sparse_attention_cpu(Tensor query, Tensor key, Tensor value, Tensor block_mask,
                                                      OptionalTensor query_segment, OptionalTensor key_segment,
                                                      double scale, bool causal, int64_t q_offset, int64_t window,
                                                      int64_t block_q, int64_t block_k) {
  const char* op = "block_sparse_attention";
  Sizes sizes = sizes_of(op, query, key, block_q, block_k);
  check_4d(op, "value", value, query);
  STD_TORCH_CHECK(value.size(0) == key.size(0) && value.size(1) == key.size(1) && value.size(2) == key.size(2), op,
                  ": 'value' must have key's batch, heads and length; key ", shape(key), ", value ", shape(value));
  sizes.v_dim = value.size(3);
  query = last_dim_contiguous(query);
  key = last_dim_contiguous(key);
  value = last_dim_contiguous(value);
  const Dtype dtype = dtype_of(op, query);
  Tensor out = torch::stable::transpose(empty(query, {sizes.batch, sizes.q_len, sizes.q_heads, sizes.v_dim}), 1, 2);
  Tensor lse = empty(query, {sizes.batch, sizes.q_heads, sizes.q_len}, ScalarType::Float);
  const AttentionArguments args{sizes,
                                view(query, dtype),
                                view(key, dtype),
                                view(value, dtype),
                                view(out, dtype),
                                lse.mutable_data_ptr<float>(),
                                block_mask_of(op, block_mask, sizes),
                                segments_of(op, "query_segment", query_segment, sizes.batch, sizes.q_len),
                                segments_of(op, "key_segment", key_segment, sizes.batch, sizes.k_len),
                                static_cast<float>(scale),
                                causal,
                                q_offset,
                                window};
  block_sparse_attention(args, select_isa(), parallel_for, torch::stable::get_num_threads());
  return {out, lse};
}

SamplingArguments sampling_arguments(const char* op, Tensor& query, Tensor& key, OptionalTensor& key_segment,
                                     double scale, int64_t q_offset, int64_t chunk_n, int64_t sample_rows,
                                     int64_t block_q, int64_t block_k) {
  const Sizes sizes = sizes_of(op, query, key, block_q, block_k);
  STD_TORCH_CHECK(chunk_n >= 1 && sample_rows >= 1, op, ": 'chunk_n' and 'sample_rows' must be >= 1, got ", chunk_n,
                  " and ", sample_rows);
  query = last_dim_contiguous(query);
  key = last_dim_contiguous(key);
  const Dtype dtype = dtype_of(op, query);
  return {sizes,
          view(query, dtype),
          view(key, dtype),
          segments_of(op, "key_segment", key_segment, sizes.batch, sizes.k_len),
          static_cast<float>(scale),
          q_offset,
          chunk_n,
          sample_rows};
}

std::tuple<Tensor, Tensor> sample_scores_cpu(Tensor query, Tensor key, OptionalTensor key_segment, double scale,
                                             int64_t q_offset, int64_t chunk_n, int64_t sample_rows, int64_t block_k) {
  const SamplingArguments args = sampling_arguments("sample_scores", query, key, key_segment, scale, q_offset, chunk_n,
                                                    sample_rows, block_k, block_k);
  const Sizes& sizes = args.sizes;
  Tensor column = empty(query, {sizes.batch, sizes.q_heads, sizes.key_blocks()}, ScalarType::Float);
  Tensor slash = empty(query, {sizes.batch, sizes.q_heads, sizes.key_blocks()}, ScalarType::Float);
  sample_scores(args, select_isa(), parallel_for, torch::stable::get_num_threads(), column.mutable_data_ptr<float>(),
                slash.mutable_data_ptr<float>());
  return {column, slash};
}

Tensor select_blocks_cpu(Tensor column_scores, Tensor slash_scores, OptionalTensor key_segment, int64_t q_len,
                         int64_t k_len, int64_t q_offset, int64_t block_q, int64_t block_k, double alpha_c,
                         double alpha_s, bool keep_sink, int64_t window_slashes, int64_t last_rows) {
  const char* op = "select_blocks";
  check_block_sizes(op, block_q, block_k);
  for (Tensor* scores : {&column_scores, &slash_scores}) {
    STD_TORCH_CHECK(scores->dim() == 3 && scores->is_cpu() && scores->scalar_type() == ScalarType::Float &&
                        scores->size(0) == column_scores.size(0) && scores->size(1) == column_scores.size(1) &&
                        scores->size(2) == ceil_div(k_len, block_k),
                    op, ": scores must be float32 CPU tensors [B, Hq, ", ceil_div(k_len, block_k), "], got ",
                    shape(*scores));
    if (!scores->is_contiguous()) *scores = torch::stable::contiguous(*scores);
  }
  STD_TORCH_CHECK(q_len >= 0, op, ": 'q_len' must be >= 0, got ", q_len);
  const int64_t batch = column_scores.size(0), heads = column_scores.size(1);
  const SelectionArguments args{column_scores.const_data_ptr<float>(),
                                slash_scores.const_data_ptr<float>(),
                                segments_of(op, "key_segment", key_segment, batch, k_len),
                                batch,
                                heads,
                                q_len,
                                k_len,
                                q_offset,
                                block_q,
                                block_k,
                                alpha_c,
                                alpha_s,
                                keep_sink,
                                window_slashes,
                                last_rows};
  Tensor mask = empty(column_scores, {batch, heads, ceil_div(q_len, block_q), mask_words(column_scores.size(2))},
                      ScalarType::Int);
  select_blocks(args, parallel_for, torch::stable::get_num_threads(),
                reinterpret_cast<uint32_t*>(mask.mutable_data_ptr<int32_t>()));
  return mask;
}

Tensor attention_mass_cpu(Tensor query, Tensor key, Tensor block_mask, OptionalTensor key_segment, double scale,
                          int64_t q_offset, int64_t chunk_n, int64_t sample_rows, int64_t block_q, int64_t block_k) {
  const char* op = "attention_mass";
  const SamplingArguments args =
      sampling_arguments(op, query, key, key_segment, scale, q_offset, chunk_n, sample_rows, block_q, block_k);
  const BlockMask mask = block_mask_of(op, block_mask, args.sizes);
  Tensor mass = empty(query, {args.sizes.batch, args.sizes.q_heads}, ScalarType::Float);
  attention_mass(args, mask, select_isa(), parallel_for, torch::stable::get_num_threads(),
                 mass.mutable_data_ptr<float>());
  return mass;
}

std::tuple<Tensor, Tensor, Tensor> block_representatives_cpu(Tensor key, OptionalTensor key_segment, int64_t block_k,
                                                             int64_t landmarks) {
  const char* op = "block_representatives";
  const Sizes sizes = sizes_of(op, key, key, block_k, block_k);
  STD_TORCH_CHECK(landmarks >= 0 && landmarks <= block_k, op, ": 'landmarks' must be in [0, block_k], got ", landmarks);
  key = last_dim_contiguous(key);
  const RepresentativeArguments args{sizes, view(key, dtype_of(op, key)),
                                     segments_of(op, "key_segment", key_segment, sizes.batch, sizes.k_len), landmarks};
  const int64_t members = 1 + landmarks;
  Tensor representatives = empty(key, {sizes.batch, sizes.kv_heads, members, sizes.key_blocks(), sizes.head_dim});
  Tensor log_weights = empty(key, {sizes.batch, sizes.kv_heads, members, sizes.key_blocks()}, ScalarType::Float);
  Tensor spreads = empty(key, {sizes.batch, sizes.kv_heads, members, sizes.key_blocks()}, ScalarType::Float);
  block_representatives(args, select_isa(), parallel_for, torch::stable::get_num_threads(),
                        static_cast<char*>(representatives.data_ptr()), log_weights.mutable_data_ptr<float>(),
                        spreads.mutable_data_ptr<float>());
  return {representatives, log_weights, spreads};
}

Tensor select_adaptive_cpu(Tensor query, Tensor key, Tensor representatives, Tensor log_weights, Tensor spreads,
                           OptionalTensor key_segment, double scale, int64_t q_offset, int64_t block_q, int64_t block_k,
                           double tau, bool keep_sink, int64_t window_slashes, int64_t last_rows) {
  const char* op = "select_adaptive";
  const Sizes sizes = sizes_of(op, query, key, block_q, block_k);
  const int64_t members = representatives.dim() == 5 ? representatives.size(2) : 0;
  STD_TORCH_CHECK(representatives.dim() == 5 && representatives.is_cpu() &&
                      representatives.scalar_type() == key.scalar_type() && representatives.size(0) == sizes.batch &&
                      representatives.size(1) == sizes.kv_heads && members >= 1 &&
                      representatives.size(3) == sizes.key_blocks() && representatives.size(4) == sizes.head_dim,
                  op, ": 'representatives' must be a CPU tensor of key's dtype [", sizes.batch, ", ", sizes.kv_heads,
                  ", members, ", sizes.key_blocks(), ", ", sizes.head_dim, "], got ", shape(representatives));
  for (Tensor* terms : {&log_weights, &spreads}) {
    STD_TORCH_CHECK(terms->dim() == 4 && terms->is_cpu() && terms->scalar_type() == ScalarType::Float &&
                        terms->size(0) == sizes.batch && terms->size(1) == sizes.kv_heads &&
                        terms->size(2) == members && terms->size(3) == sizes.key_blocks(),
                    op, ": 'log_weights' and 'spreads' must be float32 CPU tensors [", sizes.batch, ", ",
                    sizes.kv_heads, ", ", members, ", ", sizes.key_blocks(), "], got ", shape(*terms));
    if (!terms->is_contiguous()) *terms = torch::stable::contiguous(*terms);
  }
  STD_TORCH_CHECK(window_slashes >= 1, op, ": 'window_slashes' must be >= 1, got ", window_slashes);
  if (!representatives.is_contiguous()) representatives = torch::stable::contiguous(representatives);
  query = last_dim_contiguous(query);
  key = last_dim_contiguous(key);
  const Dtype dtype = dtype_of(op, query);
  const int64_t head = members * sizes.key_blocks() * sizes.head_dim;
  const AdaptiveArguments args{
      sizes,
      view(query, dtype),
      view(key, dtype),
      {static_cast<char*>(representatives.data_ptr()), dtype, sizes.kv_heads * head, head, sizes.head_dim},
      log_weights.const_data_ptr<float>(),
      spreads.const_data_ptr<float>(),
      members,
      segments_of(op, "key_segment", key_segment, sizes.batch, sizes.k_len),
      static_cast<float>(scale),
      q_offset,
      tau,
      keep_sink,
      window_slashes,
      last_rows};
  Tensor mask =
      empty(query, {sizes.batch, sizes.q_heads, sizes.query_blocks(), mask_words(sizes.key_blocks())}, ScalarType::Int);
  select_adaptive(args, select_isa(), parallel_for, torch::stable::get_num_threads(),
                  reinterpret_cast<uint32_t*>(mask.mutable_data_ptr<int32_t>()));
  return mask;
}

Tensor select_budget_cpu(Tensor query, Tensor key, OptionalTensor key_segment, double scale, int64_t q_offset,
                         int64_t block_q, int64_t block_k, double budget, double tau, int64_t rows, bool keep_sink,
                         int64_t window_slashes) {
  const char* op = "select_budget";
  const Sizes sizes = sizes_of(op, query, key, block_q, block_k);
  STD_TORCH_CHECK(rows >= 1 && window_slashes >= 1, op, ": 'rows' and 'window_slashes' must be >= 1, got ", rows,
                  " and ", window_slashes);
  query = last_dim_contiguous(query);
  key = last_dim_contiguous(key);
  const Dtype dtype = dtype_of(op, query);
  const BudgetArguments args{sizes,
                             view(query, dtype),
                             view(key, dtype),
                             segments_of(op, "key_segment", key_segment, sizes.batch, sizes.k_len),
                             static_cast<float>(scale),
                             q_offset,
                             budget,
                             tau,
                             rows,
                             keep_sink,
                             window_slashes};
  Tensor mask =
      empty(query, {sizes.batch, sizes.q_heads, sizes.query_blocks(), mask_words(sizes.key_blocks())}, ScalarType::Int);
  select_budget(args, select_isa(), parallel_for, torch::stable::get_num_threads(),
                reinterpret_cast<uint32_t*>(mask.mutable_data_ptr<int32_t>()));
  return mask;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sampleattn, CPU, library) {
  library.impl("block_sparse_attention", TORCH_BOX(&block_sparse_attention_cpu));
  library.impl("sample_scores", TORCH_BOX(&sample_scores_cpu));
  library.impl("select_blocks", TORCH_BOX(&select_blocks_cpu));
  library.impl("attention_mass", TORCH_BOX(&attention_mass_cpu));
  library.impl("block_representatives", TORCH_BOX(&block_representatives_cpu));
  library.impl("select_adaptive", TORCH_BOX(&select_adaptive_cpu));
  library.impl("select_budget", TORCH_BOX(&select_budget_cpu));
}
