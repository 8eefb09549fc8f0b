// A thread block a query block of a head: the rows' shares of every key block, averaged, and the share from which on
// blocks are kept.
#include "select_budget/cuda/bits.h"
#include "shared/cuda/launch.h"

#include <cfloat>

namespace sampleattn::budget {
namespace {

constexpr int kQuarterings = 9;  // of the interval in which that share is searched: its width is budget / 2^18
constexpr int kMostThreads = 512;
constexpr float kLn2 = 0.6931471805599453f, kLog2E = 1.4426950408889634f;

// A sum of exponentials, relative to the largest exponent.
struct Total {
  float highest = -INFINITY, sum = 0.f;

  __device__ void add(float exponent) {
    float const before = highest;
    highest = fmaxf(highest, exponent);
    if (highest > -INFINITY) sum = sum * exp2f(before - highest) + exp2f(exponent - highest);
  }
  __device__ void add(Total const& other) {
    float const zero = fmaxf(fmaxf(highest, other.highest), -FLT_MAX);
    sum = sum * exp2f(highest - zero) + other.sum * exp2f(other.highest - zero);
    highest = zero;
  }
  __device__ Total of_lane(int side) const {
    return {__shfl_xor_sync(0xffffffffu, highest, side), __shfl_xor_sync(0xffffffffu, sum, side)};
  }
};

// Of all threads' numbers the sum, for all of them. `scratch` is free for the next call when it returns.
__device__ float sum_of_all(float x, float (&scratch)[kMostThreads / 32]) {
  int const lane = threadIdx.x % 32, warps = blockDim.x / 32;
  for (int side = 16; side > 0; side /= 2) x += __shfl_xor_sync(0xffffffffu, x, side);
  if (lane == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  x = lane < warps ? scratch[lane] : 0.f;
  for (int side = 16; side > 0; side /= 2) x += __shfl_xor_sync(0xffffffffu, x, side);
  __syncthreads();
  return x;
}

// Likewise of three numbers. `scratch` is free after the call that follows.
__device__ void sums_of_all(float (&x)[3], float (&scratch)[3][kMostThreads / 32]) {
  int const lane = threadIdx.x % 32, warps = blockDim.x / 32;
  for (int side = 16; side > 0; side /= 2) {
    for (float& sum : x) sum += __shfl_xor_sync(0xffffffffu, sum, side);
  }
  if (lane == 0) {
    for (int i = 0; i < 3; ++i) scratch[i][threadIdx.x / 32] = x[i];
  }
  __syncthreads();
  for (int i = 0; i < 3; ++i) x[i] = lane < warps ? scratch[i][lane] : 0.f;
  for (int side = kMostThreads / 64; side > 0; side /= 2) {
    for (float& sum : x) sum += __shfl_xor_sync(0xffffffffu, sum, side);
  }
  for (float& sum : x) sum = __shfl_sync(0xffffffffu, sum, 0);
}

// Up to 32 rows lie in a warp's lanes side by side, as they do in memory, and beside them those of other key blocks.
// kRest: `rest` has more blocks to keep, and gets the others' shares and what they sum to. kSinks: what keys get is less
// the sink's share where it decides what is kept; the shares that `rest` gets are among keys, and wait in its memory.
template <bool kRest, bool kSinks>
__global__ void __launch_bounds__(kMostThreads)
    write(const __grid_constant__ Arguments args, const __grid_constant__ Rest rest) {
  extern __shared__ float shares[];  // the rows' average for every key block, and behind those what squares sum to
  __shared__ float scratch[kMostThreads / 32], quarters[2][3][kMostThreads / 32];
  __shared__ Total parts[kMostThreads];  // of a warp's rows
  __shared__ float2 terms[kBlock];  // of a row: its largest exponent, and the inverse of its sum
  __shared__ float left[kSinks ? kBlock : 1];  // of a row: the part that the sink leaves to keys
  int const in_batch = blockIdx.x, q_block = args.first_query_block + in_batch, n = args.n();
  int const batch = blockIdx.y / args.q_heads, entry = args.visibilities > 1 ? batch : 0;
  int const stop = args.stop_of(q_block + 1);  // behind the last block that causality allows
  int const lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  int const width = min(args.rows(), 32), step = 32 / width * warps;
  int const first = (warp * 32 + lane) / width;  // this lane's first key block, of which every `step`-th is its own
  float* const squares = shares + n;
  float* const left_out =
      kRest ? rest.shares + (int64_t(blockIdx.y) * args.query_blocks + in_batch) * rest_pitch(args) : nullptr;
  float sink_logit = -INFINITY;  // in powers of two
  if constexpr (kSinks) {
    sink_logit = __ldg(args.sink_logits + blockIdx.y % args.q_heads * args.sink_logit_stride) * kLog2E;
  }
  auto const logs_of = [&](int row) {
    int const sample = (in_batch << args.rows_log2) + row;
    return reinterpret_cast<float2 const*>(args.logs) +
           (int64_t(blockIdx.y) * args.strips() + sample / kStripRows) * n * kStripRows + sample % kStripRows;
  };

  float rows = 0.f;  // that see a key
  for (int row = 0; row < args.rows(); row += width) {
    float2 const* const logs = logs_of(row + lane % width);
    Total total;
#pragma unroll 4
    for (int j = first; j < stop; j += step) total.add(__ldg(logs + int64_t(j) * kStripRows).x);
    for (int side = width; side < 32; side *= 2) total.add(total.of_lane(side));
    parts[warp * 32 + lane] = total;
    __syncthreads();
    if (warp == 0) {
      for (int other = 1; other < warps; ++other) total.add(parts[other * 32 + lane]);
      bool const sees = total.sum > 0.f;
      if (lane < width) {
        terms[row + lane] = make_float2(fmaxf(total.highest, -FLT_MAX), sees ? 1.f / total.sum : 0.f);
        if constexpr (kSinks) {
          float const beside = exp2f(sink_logit - total.highest - log2f(total.sum));
          left[row + lane] = sees ? 1.f / (1.f + beside) : 0.f;
        }
      }
    }
    __syncthreads();
  }
  for (int row = lane; row < args.rows(); row += 32) rows += terms[row].y > 0.f ? 1.f : 0.f;
  for (int side = 16; side > 0; side /= 2) rows += __shfl_xor_sync(0xffffffffu, rows, side);
  float const average = 1.f / fmaxf(rows, 1.f);

#pragma unroll 4
  for (int j = first; j - first < stop; j += step) {  // all lanes of a warp, for they exchange what they find
    float share = 0.f, square = 0.f, among_keys = 0.f;
    for (int row = lane % width; row < args.rows() && j < stop; row += width) {
      float2 const found = __ldg(logs_of(row) + int64_t(j) * kStripRows), term = terms[row];
      float const mass = exp2f(found.x - term.x), unit = kSinks ? term.y * left[row] : term.y;
      float const norm = exp2f(found.y - term.x) * unit;
      share = fmaf(mass, unit, share);
      square = fmaf(norm, norm, square);
      if constexpr (kRest && kSinks) among_keys = fmaf(mass, term.y, among_keys);
    }
    for (int side = 1; side < width; side *= 2) {
      share += __shfl_xor_sync(0xffffffffu, share, side);
      square += __shfl_xor_sync(0xffffffffu, square, side);
      if constexpr (kRest && kSinks) among_keys += __shfl_xor_sync(0xffffffffu, among_keys, side);
    }
    if (lane % width == 0 && j < stop) {
      shares[j] = share;
      squares[j] = square;
      if constexpr (kRest && kSinks) left_out[j] = among_keys * average;
    }
  }
  __syncthreads();

  int const own = floor_div(args.position(q_block * kBlock), kBlock);
  int const sink = args.key_segment ? args.sinks[entry] : args.keep_sink ? 0 : n;
  auto const allowed = [&](int j) { return j < stop && (!args.key_segment || args.visible[int64_t(entry) * n + j]); };
  auto const forced = [&](int j) { return own - j < args.window_slashes || j == sink; };
  float kept = 0.f;  // of this thread's blocks, the shares of those that are kept
  for (int j = threadIdx.x; j < stop; j += blockDim.x) {
    if (kRest && !kSinks && allowed(j) && forced(j)) kept += shares[j] * average;
    shares[j] = allowed(j) && !forced(j) ? shares[j] * average : 0.f;
  }
  float low = 0.f, high = args.budget;
  for (int quartering = 0; quartering < kQuarterings; ++quartering) {
    float const quarter = 0.25f * (high - low), from = low;
    float left_out[3] = {};  // below the quarters' bounds
    for (int j = threadIdx.x; j < stop; j += blockDim.x) {
      float const share = shares[j];
      for (int i = 0; i < 3; ++i) left_out[i] += share < from + float(i + 1) * quarter ? share : 0.f;
    }
    sums_of_all(left_out, quarters[quartering % 2]);
    for (int i = 0; i < 3; ++i) {
      float const bound = from + float(i + 1) * quarter;
      if (bound * (bound + 2.f * left_out[i]) >= args.budget * args.budget) {
        high = bound;
        break;
      }
      low = bound;
    }
  }
  int64_t const place = int64_t(blockIdx.y) * args.q_blocks() + q_block;
  uint32_t* const words = args.block_mask + place * args.mask_words;
  uint32_t const* more = nullptr;
  if constexpr (kRest) {
    more = rest.block_mask + batch * rest.mask_batch_stride + blockIdx.y % args.q_heads * rest.mask_head_stride +
           int64_t(q_block) * args.mask_words;
  }
  for (int j = threadIdx.x; j < args.mask_words * 32; j += blockDim.x) {
    bool keep = allowed(j);
    keep = keep && (shares[j] >= high || squares[j] * (kBlock * average) >= args.tau_squared || forced(j) ||
                    (kRest && more[j / 32] >> j % 32 & 1));
    uint32_t const bits = __ballot_sync(0xffffffffu, keep);
    if (j % 32 == 0) words[j / 32] = bits;
    if (kRest && keep) {
      float& share = kSinks ? left_out[j] : shares[j];  // the latter 0 for forced blocks
      kept += share;
      share = 0.f;
    }
  }

  if constexpr (kRest) {
    float share = 0.f, level = 0.f;
    for (int j = threadIdx.x; j < rest_stop(args, in_batch / kRestRows); j += blockDim.x) {
      float const of_block = j < stop ? (kSinks ? left_out[j] : shares[j]) : 0.f;
      left_out[j] = of_block;
      share += of_block;
    }
    share = sum_of_all(share, scratch);
    kept = sum_of_all(kept, scratch);  // 1 - share would be roundings where it is little
    for (int row = lane; row < args.rows(); row += 32) {
      float2 const term = terms[row];
      if (term.y > 0.f) level += term.x - log2f(term.y);
    }
    for (int side = 16; side > 0; side /= 2) level += __shfl_xor_sync(0xffffffffu, level, side);
    if (threadIdx.x == 0) {
      rest.rest_share[place] = share;
      rest.rest_level[place] = rows > 0.f ? (level * average + log2f(kept)) * kLn2 : -INFINITY;
    }
  }
}

template <bool kRest, bool kSinks>
Error launch(Arguments const& args, Rest const& rest, cudaStream_t stream) {
  constexpr int kBlocksOfAThread = 4;
  int const threads = min(max(round_up(args.n() / kBlocksOfAThread, 32), 64), kMostThreads);
  int const bytes = 2 * args.n() * int(sizeof(float));
  dim3 const grid(args.query_blocks, args.batch * args.q_heads);
  return launch_kernel(&write<kRest, kSinks>, grid, threads, bytes, stream, args, rest);
}

}  // namespace

Error write_bits(Arguments const& args, Rest const* rest, cudaStream_t stream) {
  if (rest)
    return args.sink_logits ? launch<true, true>(args, *rest, stream) : launch<true, false>(args, *rest, stream);
  return args.sink_logits ? launch<false, true>(args, {}, stream) : launch<false, false>(args, {}, stream);
}

}  // namespace sampleattn::budget
