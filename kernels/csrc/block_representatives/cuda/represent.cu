#include "block_representatives/cuda/represent.h"

#include <cfloat>

#include "shared/cuda/head_dims.h"
#include "shared/cuda/matrix_instructions.h"
#include "shared/cuda/matrix_layout.h"
#include "shared/landmarks.h"
#include "shared/cuda/launch.h"

namespace sampleattn::adaptive {
namespace {

constexpr int kThreads = 128;  // as many as keys of a block: each thread has one
constexpr int kWarps = kThreads / 32;
constexpr float kTaken = kLandmarkTaken;

// A warp's key of which most is left.
struct Candidate {
  uint32_t rank;  // grows with what is left; 0: the warp has no key
  int thread;
  float left;
};

template <int kLandmarks>
struct Shared {
  static constexpr int kStride = kThreads + 4;  // of a row of products: a lane's pairs lie in different banks
  alignas(128) float products[kThreads * kStride];  // of the keys with each other; before that, the keys
  union {
    float sums[kThreads * kVector];      // of the keys that a thread loaded, by thread and column of its vectors
    float column[kLandmarks][kThreads];  // what was left of the keys' products with each landmark
  };
  Candidate candidate[2][kWarps];
  float spread[2][kWarps];  // sums of a warp's squares: of keys that are no landmarks, and of their mean
  uint32_t others[kWarps];  // keys that are no landmarks, a bit each
};

// One thread block a key block of a head.
template <class Element, int kHeadDim, int kLandmarks>
struct Represent {
  static constexpr int kVectors = kHeadDim / kVector;
  static constexpr int kRowsAtOnce = kThreads / kVectors;  // that the threads load, a vector each
  static constexpr int kLoads = (kThreads + kRowsAtOnce - 1) / kRowsAtOnce;
  static constexpr int kInFlight = kLoads > 16 ? (kLoads + 1) / 2 : kLoads;  // loads that registers have room for
  static constexpr int kColumns = (kHeadDim + kThreads - 1) / kThreads;  // of a row, that a thread has the sums of
  using Keys = SharedTile<kThreads, kHeadDim>;
  using Memory = Shared<kLandmarks>;

  RepresentativeArguments const& args;
  Memory& shared;
  int const thread, lane, warp, block, batch;
  int32_t const* segment;
  Element const* block_keys;

  __device__ Represent(RepresentativeArguments const& args, Memory& shared)
      : args(args), shared(shared), thread(threadIdx.x), lane(thread % 32), warp(thread / 32), block(blockIdx.x),
        batch(blockIdx.y / args.kv_heads),
        segment(args.key_segment ? args.key_segment + batch * args.key_segment_stride : nullptr),
        block_keys(static_cast<Element const*>(args.key) + batch * args.key_strides.batch +
                   blockIdx.y % args.kv_heads * args.key_strides.head +
                   int64_t(block) * kThreads * args.key_strides.row) {}

  __device__ Element const* key_of(int row) const { return block_keys + row * args.key_strides.row; }
  __device__ uint4 vector_of(int row, int vector) const {
    return __ldg(reinterpret_cast<uint4 const*>(key_of(row)) + vector);
  }
  __device__ Element* shared_keys() { return reinterpret_cast<Element*>(shared.products); }
  __device__ bool valid(int row) const {
    int const place = block * kThreads + row;
    return place < args.kv_len && (!segment || segment[place] == 0);
  }

  __device__ void run() {
    load_keys();
    __syncthreads();
    float sum[kColumns];
    add_columns(sum);
    multiply_keys();
    int landmark[kLandmarks];
    choose_landmarks(landmark);
    write(landmark, sum);
  }

  // Copies the block's keys, zeros for those that may not be seen, and adds them up.
  __device__ void load_keys() {
    static_assert(sizeof(shared.products) >= Keys::kElements * sizeof(Element));
    int const vector = thread % kVectors, first = thread / kVectors;
    if (first >= kRowsAtOnce) return;
    float sum[kVector] = {};
#pragma unroll
    for (int start = 0; start < kLoads; start += kInFlight) {
      uint4 loaded[kInFlight];
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        int const row = first + (start + i) * kRowsAtOnce;
        loaded[i] = row < kThreads && valid(row) ? vector_of(row, vector) : make_uint4(0, 0, 0, 0);
      }
#pragma unroll
      for (int i = 0; i < kInFlight; ++i) {
        int const row = first + (start + i) * kRowsAtOnce;
        if (row < kThreads) *reinterpret_cast<uint4*>(shared_keys() + Keys::offset(row, vector)) = loaded[i];
        auto const* element = reinterpret_cast<Element const*>(&loaded[i]);
#pragma unroll
        for (int j = 0; j < kVector; ++j) sum[j] += float(element[j]);
      }
    }
#pragma unroll
    for (int j = 0; j < kVector; ++j) shared.sums[first * kHeadDim + vector * kVector + j] = sum[j];
  }

  // Of all keys, in the columns from this thread's number on; 0 in those behind the head dim.
  __device__ void add_columns(float (&sum)[kColumns]) const {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      int const column = c * kThreads + thread;
      sum[c] = 0.f;
#pragma unroll
      for (int i = 0; i < kRowsAtOnce; ++i) sum[c] += column < kHeadDim ? shared.sums[i * kHeadDim + column] : 0.f;
    }
  }

  // The keys' products with each other take the keys' place. A warp multiplies its 32 keys with themselves and with those
  // of the next warp or two, so that every pair of warps is met once, and stores what it has for both.
  __device__ void multiply_keys() {
    float product[3][2][16] = {};
#pragma unroll 1
    for (int k = 0; k < kHeadDim / 16; ++k) {
      uint32_t a[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        LaneVector const own = vector_of_a(lane);
        load_matrices(a[m], shared_keys() + Keys::offset(warp * 32 + m * 16 + own.row, k * 2 + own.vector));
      }
#pragma unroll
      for (int step = 0; step < 3; ++step) {
        if (step == 2 && warp >= 2) continue;
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          uint32_t b[4];
          LaneVector const own = vector_of_b(lane);
          int const row = (warp + step) % kWarps * 32 + n * 16 + own.row;
          load_matrices(b, shared_keys() + Keys::offset(row, k * 2 + own.vector));
#pragma unroll
          for (int m = 0; m < 2; ++m) {
            multiply(product[step][m] + n * 8, a[m], b[0], b[1], Element{});
            multiply(product[step][m] + n * 8 + 4, a[m], b[2], b[3], Element{});
          }
        }
      }
    }
    __syncthreads();
#pragma unroll
    for (int step = 0; step < 3; ++step) {
      if (step == 2 && warp >= 2) continue;
#pragma unroll
      for (int i = 0; i < 32; i += 2) {
        int const m = i / 16, n = i % 16 / 4, half = i % 4 / 2;
        int const row = warp * 32 + m * 16 + half * 8 + lane / 4;
        int const column = (warp + step) % kWarps * 32 + n * 8 + lane % 4 * 2;
        float const* pair = product[step][m] + i % 16;
        *reinterpret_cast<float2*>(shared.products + row * Memory::kStride + column) = make_float2(pair[0], pair[1]);
        if (step == 0) continue;
        shared.products[column * Memory::kStride + row] = pair[0];
        shared.products[(column + 1) * Memory::kStride + row] = pair[1];
      }
    }
    __syncthreads();
  }

  // Landmarks are the pivots of a Cholesky factorisation of the products that takes only a part of each column away.
  // -1 where the block has no more keys. Leaves the others, and what their squares sum to, in shared memory.
  __device__ void choose_landmarks(int (&landmark)[kLandmarks]) {
    bool const first_here = block == (args.first_blocks ? args.first_blocks[batch * args.first_block_stride] : 0);
    bool const exists = valid(thread);
    float const square = shared.products[thread * Memory::kStride + thread];
    float left = exists ? square : -1.f;  // of the squared norm; below 0: no key, or chosen
    float own[kLandmarks], factor[kLandmarks];  // of this thread's key in the columns; what of their squares is taken
#pragma unroll
    for (int mark = 0; mark < kLandmarks; ++mark) {
      uint32_t rank = left < 0.f ? 0 : __float_as_uint(left) + 1;
      if (mark == 0 && first_here) rank = exists ? 0xffffffffu - thread : 0;  // the prompt's first key
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
      bool const found = best.rank > 0;
      landmark[mark] = found ? best.thread : -1;
      factor[mark] = found ? kTaken / fmaxf(best.left, FLT_MIN) : 0.f;
      float product = shared.products[best.thread * Memory::kStride + thread];
#pragma unroll
      for (int earlier = 0; earlier < mark; ++earlier) {
        product -= factor[earlier] * own[earlier] * shared.column[earlier][best.thread];
      }
      own[mark] = shared.column[mark][thread] = product;
      left = left < 0.f ? left : fmaxf(left - factor[mark] * product * product, 0.f);
      if (thread == best.thread) left = -1.f;
    }
    bool const other = !(left < 0.f);
    uint32_t const bits = __ballot_sync(0xffffffffu, other);
    if (lane == 0) shared.others[warp] = bits;
    sum_over_warp(shared.spread[0], other ? square : 0.f);
  }

  __device__ void sum_over_warp(float (&sums)[kWarps], float x) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    if (lane == 0) sums[warp] = x;
  }

  // sum: add_columns(). The others' mean is what landmarks leave of it, their spread what the mean leaves of their squares.
  __device__ void write(int const (&landmark)[kLandmarks], float const (&sum)[kColumns]) {
    int64_t const n = gridDim.x, first = int64_t(blockIdx.y) * (1 + kLandmarks) * n + block;
    auto* representatives = static_cast<Element*>(args.representatives);
    __syncthreads();
    int count = 0;
    for (uint32_t of_warp : shared.others) count += __popc(of_warp);
    float const inverse = count ? 1.f / float(count) : 0.f;
    float square = 0.f;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      int const column = c * kThreads + thread;
      if (column >= kHeadDim) continue;
      float of_others = sum[c];
#pragma unroll
      for (int row : landmark) of_others -= row < 0 ? 0.f : float(key_of(row)[column]);
      representatives[first * kHeadDim + column] = Element(of_others * inverse);
      square += of_others * inverse * of_others;
    }
    sum_over_warp(shared.spread[1], square);
    for (int i = thread; i < kLandmarks * kVectors; i += kThreads) {
      int const mark = i / kVectors, vector = i % kVectors, row = landmark_at(landmark, mark);
      uint4 const copied = row < 0 ? make_uint4(0, 0, 0, 0) : vector_of(row, vector);
      reinterpret_cast<uint4*>(representatives + (first + (1 + mark) * n) * kHeadDim)[vector] = copied;
    }
    __syncthreads();
    if (thread <= kLandmarks) {
      float squares = 0.f, of_mean = 0.f;
#pragma unroll
      for (int i = 0; i < kWarps; ++i) {
        squares += shared.spread[0][i];
        of_mean += shared.spread[1][i];
      }
      bool const mean = thread == 0, exists = mean ? count > 0 : landmark_at(landmark, thread - 1) >= 0;
      args.log_weights[first + thread * n] = !exists ? -INFINITY : mean ? logf(float(count)) : 0.f;
      args.spreads[first + thread * n] = mean ? fmaxf(squares - of_mean, 0.f) * inverse / float(kHeadDim) : 0.f;
    }
  }

  // landmark[mark], for registers cannot be indexed.
  __device__ static int landmark_at(int const (&landmark)[kLandmarks], int mark) {
    int found = -1;
#pragma unroll
    for (int i = 0; i < kLandmarks; ++i) found = i == mark ? landmark[i] : found;
    return found;
  }
};

template <class Element, int kHeadDim, int kLandmarks>
__global__ void __launch_bounds__(kThreads, 3) represent(const __grid_constant__ RepresentativeArguments args) {
  extern __shared__ __align__(128) unsigned char memory[];
  Represent<Element, kHeadDim, kLandmarks>(args, *reinterpret_cast<Shared<kLandmarks>*>(memory)).run();
}

template <class Element, int kHeadDim, int kLandmarks>
Error launch(RepresentativeArguments const& args, cudaStream_t stream) {
  dim3 const grid((args.kv_len + kThreads - 1) / kThreads, args.batch * args.kv_heads);
  constexpr int kBytes = sizeof(Shared<kLandmarks>);
  static_assert(3 * (kBytes + 1024) <= 228 * 1024, "three thread blocks a multiprocessor of sm_90");
  return launch_kernel(&represent<Element, kHeadDim, kLandmarks>, grid, kThreads, kBytes, stream, args);
}

template <class Element, int kHeadDim>
Error launch(RepresentativeArguments const& args, cudaStream_t stream) {
  if (args.landmarks == 7) return launch<Element, kHeadDim, 7>(args, stream);
  if (args.landmarks == 15) return launch<Element, kHeadDim, 15>(args, stream);
  return {"no kernel for this number of landmarks", args.landmarks};
}

}  // namespace

Error represent_blocks(RepresentativeArguments const& args, cudaStream_t stream) {
  return SelectionHeadDims::dispatch({args.head_dim, args.head_dim}, [&]<int kHeadDim, int> {
    return args.dtype == DataType::kBFloat16 ? launch<cutlass::bfloat16_t, kHeadDim>(args, stream)
                                             : launch<cutlass::half_t, kHeadDim>(args, stream);
  });
}

}  // namespace sampleattn::adaptive
