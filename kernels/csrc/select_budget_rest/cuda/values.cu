// Shares times mean values: a matrix product of a head's query blocks and key blocks, so that a mean value is read for
// many query blocks at once. Shares count as TF32, off by 2^-11 at most; mean values are exact in it.
#include "cutlass/numeric_types.h"
#include "select_budget_rest/cuda/rest.h"
#include "shared/cuda/matrix_instructions.h"
#include "shared/cuda/launch.h"

namespace sampleattn::budget {
namespace {

constexpr int kStages = 4;
constexpr int kWarpColumns = 32;  // of a warp: a thread block has a thread for each column
static_assert(kRestColumns % kWarpColumns == 0);
// Words of a row in shared memory, of which those that a warp reads at a time are then in different banks.
constexpr int kShareWords = kRestKeys + 4;
SAMPLEATTN_DEVICE int mean_words(int dim) { return dim / 2 + 8; }
SAMPLEATTN_DEVICE int stage_words(int dim) { return kRestRows * kShareWords + kRestKeys * mean_words(dim); }

// 16 bytes, or zeros.
__device__ void copy_async(uint32_t* shared, void const* global, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
               "r"(there ? 16 : 0)
               : "memory");
}

__device__ uint32_t as_tf32(float x) {
  uint32_t rounded;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(x));
  return rounded;
}

// A word's two elements.
__device__ uint2 as_tf32(uint32_t word, cutlass::bfloat16_t) { return {word << 16, word & 0xffff0000u}; }
__device__ uint2 as_tf32(uint32_t word, cutlass::half_t) {
  auto const* element = reinterpret_cast<cutlass::half_t const*>(&word);
  return {__float_as_uint(float(element[0])), __float_as_uint(float(element[1]))};
}

// c[0..3] += a (16 x 8) times b (8 x 8).
__device__ void multiply_tf32(float (&c)[4], uint32_t const (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// One thread block kRestRows query blocks of a head. Those with most key blocks come first.
template <class Element>
__global__ void __launch_bounds__(kMostRestColumns)
    sum(const __grid_constant__ Arguments args, const __grid_constant__ Rest rest) {
  extern __shared__ __align__(16) uint32_t memory[];
  int const dim = rest.value_head_dim, n = args.n(), tile = gridDim.x - 1 - blockIdx.x, first = tile * kRestRows;
  int const stop = rest_stop(args, tile), pitch = rest_pitch(args), thread = threadIdx.x;
  int const kv_head = blockIdx.y / args.q_heads * args.kv_heads + blockIdx.y % args.q_heads / args.group();
  float const* const shares = rest.shares + (int64_t(blockIdx.y) * args.query_blocks + first) * pitch;
  Element const* const means = static_cast<Element const*>(rest.mean_value) + int64_t(kv_head) * n * dim;

  auto const stage_of = [&](int step) { return memory + step % kStages * stage_words(dim); };
  auto const load = [&](int step) {
    uint32_t* const stage = stage_of(step);
    int const key = step * kRestKeys, vectors = dim / kRestVector;
    if (key < stop) {
      for (int i = thread; i < kRestRows * kRestKeys / 4; i += dim) {
        int const row = i / (kRestKeys / 4), column = i % (kRestKeys / 4) * 4;
        bool const there = first + row < args.query_blocks;
        copy_async(stage + row * kShareWords + column, shares + (there ? int64_t(row) * pitch : 0) + key + column,
                   there);
      }
      for (int i = thread; i < kRestKeys * vectors; i += dim) {
        int const row = i / vectors, vector = i % vectors;
        bool const there = key + row < n;
        copy_async(stage + kRestRows * kShareWords + row * mean_words(dim) + vector * kRestVector / 2,
                   means + (there ? int64_t(key + row) * dim : 0) + vector * kRestVector, there);
      }
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };

  int const group = thread % 32 / 4, lane = thread % 4, column = thread / 32 * kWarpColumns;
  float total[kWarpColumns / 8][4] = {};  // of two at a time the columns alternate, as in a word
  for (int step = 0; step < kStages - 1; ++step) load(step);
  for (int step = 0; step * kRestKeys < stop; ++step) {
    asm volatile("cp.async.wait_group %0;" ::"n"(kStages - 2) : "memory");
    __syncthreads();
    load(step + kStages - 1);
    auto const* const share = reinterpret_cast<float const*>(stage_of(step)) + group * kShareWords + lane;
    uint32_t const* const mean = stage_of(step) + kRestRows * kShareWords + lane * mean_words(dim) + column / 2 + group;
#pragma unroll
    for (int k = 0; k < kRestKeys; k += 8) {
      uint32_t const a[4] = {as_tf32(share[k]), as_tf32(share[k + 8 * kShareWords]), as_tf32(share[k + 4]),
                             as_tf32(share[k + 4 + 8 * kShareWords])};
#pragma unroll
      for (int i = 0; i < kWarpColumns / 16; ++i) {
        uint2 const b0 = as_tf32(mean[k * mean_words(dim) + i * 8], Element{});
        uint2 const b1 = as_tf32(mean[(k + 4) * mean_words(dim) + i * 8], Element{});
        multiply_tf32(total[2 * i], a, b0.x, b1.x);
        multiply_tf32(total[2 * i + 1], a, b0.y, b1.y);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    int const in_batch = first + group + 8 * r;
    if (in_batch >= args.query_blocks) continue;
    int64_t const place = int64_t(blockIdx.y) * args.q_blocks() + args.first_query_block + in_batch;
#pragma unroll
    for (int i = 0; i < kWarpColumns / 16; ++i) {
      auto const &even = total[2 * i], &odd = total[2 * i + 1];
      *reinterpret_cast<float4*>(rest.rest_value + place * dim + column + i * 16 + lane * 4) =
          make_float4(even[2 * r], odd[2 * r], even[2 * r + 1], odd[2 * r + 1]);
    }
  }
}

template <class Element>
Error launch(Arguments const& args, Rest const& rest, cudaStream_t stream) {
  int const bytes = kStages * stage_words(rest.value_head_dim) * int(sizeof(uint32_t));
  dim3 const grid(ceil_div(args.query_blocks, kRestRows), args.batch * args.q_heads);
  return launch_kernel(&sum<Element>, grid, rest.value_head_dim, bytes, stream, args, rest);
}

}  // namespace

Error sum_values(Arguments const& args, Rest const& rest, cudaStream_t stream) {
  return args.dtype == DataType::kBFloat16 ? launch<cutlass::bfloat16_t>(args, rest, stream)
                                           : launch<cutlass::half_t>(args, rest, stream);
}

}  // namespace sampleattn::budget
