#include "block_mean_attention/cuda/means.h"

#include "cutlass/numeric_types.h"

namespace sampleattn {
namespace {

constexpr int kThreads = 256;
constexpr int kVector = 8;  // elements of a load
constexpr int kMostBlock = 128, kMostDim = 128;
constexpr float kLog2E = 1.4426950408889634f;

struct Shared {
  float partial[kThreads * kVector];  // of a group of rows: sums of its columns
  float mean[kMostDim];
  float warp_sum[kThreads / 32];
};

__device__ float block_sum(Shared& shared, float x) {
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared.warp_sum[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = 0.f;
  for (float part : shared.warp_sum) sum += part;
  return sum;
}

// A thread holds one vector of columns of some rows.
template <class Element>
struct Rows {
  static constexpr int kMost = kMostBlock * kMostDim / kVector / kThreads;
  uint4 loaded[kMost];
  uint32_t counts = 0;  // a bit a row
  int vectors, groups, vector, group;

  __device__ Rows(void const* tensor, Strides const& strides, int batch, int head, int first, int end, int dim,
                  int32_t const* segment)
      : vectors(dim / kVector), groups(kThreads / vectors), vector(threadIdx.x % vectors),
        group(threadIdx.x / vectors) {
    auto const* column =
        static_cast<Element const*>(tensor) + batch * strides.batch + head * strides.head + vector * kVector;
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      int const row = first + group + i * groups;
      bool const count = group < groups && row < end && (!segment || segment[row] == 0);
      loaded[i] = count ? *reinterpret_cast<uint4 const*>(column + row * strides.row) : make_uint4(0, 0, 0, 0);
      counts |= uint32_t(count) << i;
    }
  }

  __device__ float at(int i, int element) const { return float(reinterpret_cast<Element const*>(&loaded[i])[element]); }

  // Leaves the mean of all rows in shared.mean.
  __device__ void average(Shared& shared, float inverse) const {
    float sum[kVector] = {};
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
#pragma unroll
      for (int e = 0; e < kVector; ++e) sum[e] += at(i, e);
    }
    __syncthreads();
    if (group < groups) {
      for (int e = 0; e < kVector; ++e) shared.partial[(group * vectors + vector) * kVector + e] = sum[e];
    }
    __syncthreads();
    for (int d = threadIdx.x; d < vectors * kVector; d += kThreads) {
      float total = 0.f;
      for (int g = 0; g < groups; ++g) total += shared.partial[g * vectors * kVector + d];
      shared.mean[d] = total * inverse;
    }
    __syncthreads();
  }

  // Of this thread's elements: the squared distances from shared.mean, summed.
  __device__ float squared_distance(Shared const& shared) const {
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < kMost; ++i) {
      if (!(counts >> i & 1)) continue;
#pragma unroll
      for (int e = 0; e < kVector; ++e) {
        float const distance = at(i, e) - shared.mean[vector * kVector + e];
        sum = fmaf(distance, distance, sum);
      }
    }
    return sum;
  }
};

// Writes shared.mean, or zeros if it is not finite. Returns whether that was so.
template <class Element>
__device__ bool store_mean(Shared const& shared, Element* to, int dim) {
  bool broken = false;
  for (int d = threadIdx.x; d < dim; d += kThreads) broken |= !isfinite(shared.mean[d]);
  broken = __syncthreads_or(broken);
  for (int d = threadIdx.x; d < dim; d += kThreads) to[d] = Element(broken ? 0.f : shared.mean[d]);
  return broken;
}

// One thread block a key block of a head.
template <class Element>
__global__ void __launch_bounds__(kThreads) average(const __grid_constant__ Arguments args) {
  __shared__ Shared shared;
  int const block = blockIdx.x, batch = blockIdx.y / args.kv_heads, head = blockIdx.y % args.kv_heads;
  int const first = block * args.block_k, end = min(first + args.block_k, args.kv_len);
  int32_t const* segment = args.key_segment ? args.key_segment + batch * args.key_segment_stride : nullptr;
  int count = 0;
  for (int begin = first; begin < end; begin += kThreads) {
    int const row = begin + threadIdx.x;
    count += __syncthreads_count(row < end && (!segment || segment[row] == 0));
  }
  float const number = float(max(count, 1)), inverse = 1.f / number;
  int64_t const place = int64_t(blockIdx.y) * args.key_blocks() + block;

  Rows<Element> const keys(args.key, args.key_strides, batch, head, first, end, args.head_dim, segment);
  keys.average(shared, inverse);
  float const spread = block_sum(shared, keys.squared_distance(shared)) * inverse / float(args.head_dim);
  bool const lost = store_mean(shared, static_cast<Element*>(args.mean_key) + place * args.head_dim, args.head_dim);

  Rows<Element> const values(args.value, args.value_strides, batch, head, first, end, args.value_head_dim, segment);
  values.average(shared, inverse);
  auto* mean_value = static_cast<Element*>(args.mean_value) + place * args.value_head_dim;
  bool const broken = store_mean(shared, mean_value, args.value_head_dim) || lost;
  if (threadIdx.x != 0) return;
  float const weight = count == 0 ? -INFINITY : log2f(number) / (args.scale * kLog2E);
  args.mean_terms[2 * place] = broken ? NAN : weight;
  args.mean_terms[2 * place + 1] = spread;
}

}  // namespace

cudaError_t average_blocks(Arguments const& args, cudaStream_t stream) {
  dim3 const grid(args.key_blocks(), args.batch * args.kv_heads);
  if (args.block_k > kMostBlock || args.head_dim > kMostDim || args.value_head_dim > kMostDim ||
      (args.head_dim | args.value_head_dim) % kVector) {
    return cudaErrorInvalidValue;
  }
  if (grid.x * grid.y == 0) return cudaSuccess;
  if (args.dtype == DataType::kBFloat16) {
    average<cutlass::bfloat16_t><<<grid, kThreads, 0, stream>>>(args);
  } else {
    average<cutlass::half_t><<<grid, kThreads, 0, stream>>>(args);
  }
  return cudaGetLastError();
}

}  // namespace sampleattn
