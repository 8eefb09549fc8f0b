#include "cutlass/numeric_types.h"
#include "select_budget_rest/cuda/rest.h"

namespace sampleattn::budget {
namespace {

constexpr int kThreads = 256;
constexpr int kLoads = 8;  // of a thread, under way at a time

// One thread block a key block of a head. A thread sums one vector of columns of some rows.
template <class Element>
__global__ void __launch_bounds__(kThreads)
    average(const __grid_constant__ Arguments args, const __grid_constant__ Rest rest) {
  __shared__ float partial[kThreads * kRestVector];  // of a group of rows: sums of its columns
  int const block = blockIdx.x, batch = blockIdx.y / args.kv_heads, head = blockIdx.y % args.kv_heads;
  int const first = block * kBlock, end = min(first + kBlock, args.kv_len), dim = rest.value_head_dim;
  int const vectors = dim / kRestVector, groups = kThreads / vectors;
  int const vector = threadIdx.x % vectors, group = threadIdx.x / vectors;
  int32_t const* segment = args.key_segment ? args.key_segment + batch * args.key_segment_stride : nullptr;
  auto const counts = [&](int row) { return row < end && (!segment || segment[row] == 0); };
  int const count = __syncthreads_count(threadIdx.x < kBlock && counts(first + threadIdx.x));

  auto const* column = static_cast<Element const*>(rest.value) + batch * rest.value_strides.batch +
                       head * rest.value_strides.head + vector * kRestVector;
  float sum[kRestVector] = {};
  for (int begin = first + group; group < groups && begin < end; begin += groups * kLoads) {
    uint4 loaded[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
      int const row = begin + i * groups;
      loaded[i] = counts(row) ? __ldg(reinterpret_cast<uint4 const*>(column + row * rest.value_strides.row))
                              : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
#pragma unroll
      for (int e = 0; e < kRestVector; ++e) sum[e] += float(reinterpret_cast<Element const*>(&loaded[i])[e]);
    }
  }
#pragma unroll
  for (int e = 0; e < kRestVector; ++e) partial[threadIdx.x * kRestVector + e] = sum[e];
  __syncthreads();
  auto* mean = static_cast<Element*>(rest.mean_value) + (int64_t(blockIdx.y) * args.n() + block) * dim;
  for (int d = threadIdx.x; d < dim; d += kThreads) {
    float total = 0.f;
    for (int g = 0; g < groups; ++g) total += partial[g * dim + d];
    total *= 1.f / float(max(count, 1));
    mean[d] = Element(isfinite(total) ? total : 0.f);
  }
}

}  // namespace

Error average_values(Arguments const& args, Rest const& rest, cudaStream_t stream) {
  if (rest.value_head_dim % kRestColumns || rest.value_head_dim > kMostRestColumns) {
    return {"no kernel for this head dim of values", rest.value_head_dim};
  }
  dim3 const grid(args.n(), args.batch * args.kv_heads);
  if (grid.x * grid.y == 0) return {};
  if (args.dtype == DataType::kBFloat16) {
    average<cutlass::bfloat16_t><<<grid, kThreads, 0, stream>>>(args, rest);
  } else {
    average<cutlass::half_t><<<grid, kThreads, 0, stream>>>(args, rest);
  }
  return to_error(cudaGetLastError());
}

}  // namespace sampleattn::budget
