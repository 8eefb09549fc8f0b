#include "sampleattn/cuda/representatives.h"

#include <cfloat>

#include "cutlass/numeric_types.h"

namespace sampleattn::adaptive {
namespace {

constexpr int kThreads = 128;  // as many as keys of a block: each thread has one
constexpr int kWarps = kThreads / 32;
constexpr int kVector = 8;  // elements of a load
// See LANDMARK_TAKEN in kernels/defaults.py.
constexpr float kTaken = 0.75f;

// A warp's key of which most is left.
struct Candidate {
  uint32_t rank;  // grows with what is left; 0: the warp has no key
  int thread;
  float left;
};

template <int kHeadDim, int kLandmarks>
struct Shared {
  Candidate candidate[2][kWarps];
  float column[kLandmarks][kThreads];  // what was left of the keys' products with each landmark
  float factor[kLandmarks];            // what of a column's square is taken from a key's
  float partial[kThreads * 2];
  float4 key[kHeadDim / 4];  // the landmark that is taken away
  float mean[kHeadDim];
  float warp_sum[kWarps];
  uint32_t others[kWarps];  // keys that are no landmarks, a bit each
  int landmark[kLandmarks];  // -1: the block has no such
};

template <class Element>
__device__ float2 pair_at(uint32_t packed) {
  auto const* element = reinterpret_cast<Element const*>(&packed);
  return make_float2(float(element[0]), float(element[1]));
}

// One thread block a key block of a head. Landmarks are the pivots of a Cholesky factorisation of the keys' products that
// takes only a part of each column away.
template <class Element, int kHeadDim, int kLandmarks>
__global__ void __launch_bounds__(kThreads, kHeadDim == 64 ? 5 : 3)
    represent(const __grid_constant__ RepresentativeArguments args) {
  __shared__ Shared<kHeadDim, kLandmarks> shared;
  constexpr int kVectors = kHeadDim / kVector;
  int const thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  int const block = blockIdx.x, n = gridDim.x, batch = blockIdx.y / args.heads_kv, head = blockIdx.y % args.heads_kv;
  int32_t const* segment = args.key_segment ? args.key_segment + batch * args.key_segment_stride : nullptr;
  auto const* keys = static_cast<Element const*>(args.key) + batch * args.key_strides.batch +
                     head * args.key_strides.head + int64_t(block) * kThreads * args.key_strides.row;
  auto key_of = [&](int row) { return reinterpret_cast<uint4 const*>(keys + row * args.key_strides.row); };

  int const place = block * kThreads + thread;
  bool const valid = place < args.k_len && (!segment || segment[place] == 0);
  float key[kHeadDim];
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    uint4 const loaded = valid ? __ldg(key_of(thread) + v) : make_uint4(0, 0, 0, 0);
    uint32_t const packed[] = {loaded.x, loaded.y, loaded.z, loaded.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float2 const x = pair_at<Element>(packed[i]);
      key[v * kVector + 2 * i] = x.x;
      key[v * kVector + 2 * i + 1] = x.y;
    }
  }
  float norm[2] = {0.f, 0.f};
#pragma unroll
  for (int d = 0; d < kHeadDim; ++d) norm[d % 2] = fmaf(key[d], key[d], norm[d % 2]);
  float left = valid ? norm[0] + norm[1] : -1.f;  // of the squared norm; below 0: no key, or chosen
  bool const has_first = block == (args.first_blocks ? args.first_blocks[batch * args.first_block_stride] : 0);

  // Not unrolled: the code would no longer fit into the instruction cache.
#pragma unroll 1
  for (int mark = 0; mark < kLandmarks; ++mark) {
    uint32_t rank = left < 0.f ? 0 : __float_as_uint(left) + 1;
    if (mark == 0 && has_first) rank = valid ? 0xffffffffu - thread : 0;  // the prompt's first key
    uint32_t const highest = __reduce_max_sync(0xffffffffu, rank);
    if (lane == __ffs(__ballot_sync(0xffffffffu, rank == highest)) - 1) {
      shared.candidate[mark % 2][warp] = {highest, thread, left};
    }
    __syncthreads();
    Candidate best = shared.candidate[mark % 2][0];
#pragma unroll
    for (int other = 1; other < kWarps; ++other) {
      Candidate const candidate = shared.candidate[mark % 2][other];
      if (candidate.rank > best.rank) best = candidate;
    }
    bool const exists = best.rank > 0;
    float const factor = exists ? kTaken / fmaxf(best.left, FLT_MIN) : 0.f;
    if (thread == 0) {
      shared.landmark[mark] = exists ? best.thread : -1;
      shared.factor[mark] = factor;
    }
    float product = 0.f;
    if (thread == best.thread) {
#pragma unroll
      for (int d = 0; d < kHeadDim; d += 4) shared.key[d / 4] = make_float4(key[d], key[d + 1], key[d + 2], key[d + 3]);
    }
    __syncthreads();
    if (exists) {
      float other = 0.f;
#pragma unroll
      for (int d = 0; d < kHeadDim; d += 4) {
        float4 const landmark = shared.key[d / 4];
        product = fmaf(key[d], landmark.x, fmaf(key[d + 1], landmark.y, product));
        other = fmaf(key[d + 2], landmark.z, fmaf(key[d + 3], landmark.w, other));
      }
      product += other;
      for (int earlier = 0; earlier < mark; ++earlier) {
        product -= shared.factor[earlier] * shared.column[earlier][thread] * shared.column[earlier][best.thread];
      }
      left = left < 0.f ? left : fmaxf(left - factor * product * product, 0.f);
      if (thread == best.thread) left = -1.f;
    }
    shared.column[mark][thread] = product;
  }

  // The others' mean: a thread sums two columns of some rows.
  bool const other = valid && !(left < 0.f);
  uint32_t const bits = __ballot_sync(0xffffffffu, other);
  if (lane == 0) shared.others[warp] = bits;
  __syncthreads();
  int count = 0;
  for (uint32_t of_warp : shared.others) count += __popc(of_warp);
  float const inverse = 1.f / float(max(count, 1));
  constexpr int kPairs = kHeadDim / 2, kGroups = kThreads / kPairs;
  int const pair = thread % kPairs, group = thread / kPairs;
  float2 sum = make_float2(0.f, 0.f);
#pragma unroll 8
  for (int row = group; row < kThreads; row += kGroups) {
    bool const counts = shared.others[row / 32] >> (row % 32) & 1;
    float2 const x = pair_at<Element>(counts ? __ldg(reinterpret_cast<uint32_t const*>(key_of(row)) + pair) : 0u);
    sum.x += x.x;
    sum.y += x.y;
  }
  shared.partial[group * kHeadDim + 2 * pair] = sum.x;
  shared.partial[group * kHeadDim + 2 * pair + 1] = sum.y;
  __syncthreads();
  int64_t const first = int64_t(blockIdx.y) * (1 + kLandmarks) * n + block;
  auto* representatives = static_cast<Element*>(args.representatives);
  if (thread < kHeadDim) {
    float total = 0.f;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) total += shared.partial[g * kHeadDim + thread];
    shared.mean[thread] = total * inverse;
    representatives[first * kHeadDim + thread] = Element(total * inverse);
  }
  __syncthreads();

  float distance = 0.f;
#pragma unroll
  for (int d = 0; d < kHeadDim; ++d) {
    float const along = key[d] - shared.mean[d];
    distance = fmaf(along, along, distance);
  }
  distance = other ? distance : 0.f;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) distance += __shfl_xor_sync(0xffffffffu, distance, step);
  if (lane == 0) shared.warp_sum[warp] = distance;
  __syncthreads();
  if (thread <= kLandmarks) {
    float spread = 0.f;
    for (float part : shared.warp_sum) spread += part;
    bool const mean = thread == 0, exists = mean ? count > 0 : shared.landmark[max(thread - 1, 0)] >= 0;
    args.log_weights[first + int64_t(thread) * n] = !exists ? -INFINITY : mean ? logf(float(count)) : 0.f;
    args.spreads[first + int64_t(thread) * n] = mean ? spread * inverse / float(kHeadDim) : 0.f;
  }
  for (int i = thread; i < kLandmarks * kVectors; i += kThreads) {
    int const mark = i / kVectors, row = shared.landmark[mark];
    uint4 const copied = row < 0 ? make_uint4(0, 0, 0, 0) : __ldg(key_of(row) + i % kVectors);
    reinterpret_cast<uint4*>(representatives + (first + int64_t(1 + mark) * n) * kHeadDim)[i % kVectors] = copied;
  }
}

template <class Element, int kHeadDim>
Error launch(RepresentativeArguments const& args, cudaStream_t stream) {
  dim3 const grid((args.k_len + kThreads - 1) / kThreads, args.batch * args.heads_kv);
  if (args.landmarks == 7) {
    represent<Element, kHeadDim, 7><<<grid, kThreads, 0, stream>>>(args);
  } else if (args.landmarks == 15) {
    represent<Element, kHeadDim, 15><<<grid, kThreads, 0, stream>>>(args);
  } else {
    return {"no kernel for this number of landmarks", args.landmarks};
  }
  return to_error(cudaGetLastError());
}

}  // namespace

Error represent_blocks(RepresentativeArguments const& args, cudaStream_t stream) {
  bool const bfloat16 = args.dtype == DataType::kBFloat16;
  if (args.head_dim == 64) {
    return bfloat16 ? launch<cutlass::bfloat16_t, 64>(args, stream) : launch<cutlass::half_t, 64>(args, stream);
  }
  if (args.head_dim == 128) {
    return bfloat16 ? launch<cutlass::bfloat16_t, 128>(args, stream) : launch<cutlass::half_t, 128>(args, stream);
  }
  return {"no kernel for this head_dim", args.head_dim};
}

}  // namespace sampleattn::adaptive
