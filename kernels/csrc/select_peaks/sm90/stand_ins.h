// What a row's total counts beside its query block's own keys, as rows that are multiplied like keys.
#pragma once

#include "select_adaptive/sm90/config.h"
#include "select_peaks/cuda/arguments.h"

namespace sampleattn::sm90::peaks {

using namespace cute;
using namespace sampleattn::peaks;
using Arguments = sampleattn::peaks::Arguments;
using sampleattn::adaptive::kLog2E;

CUTE_DEVICE float2* stand_in_terms(Arguments const& args) { return reinterpret_cast<float2*>(args.stand_in_terms); }

CUTE_DEVICE float warp_sum(float x) {
  CUTE_UNROLL
  for (int side = 16; side > 0; side /= 2) x += __shfl_xor_sync(0xffffffffu, x, side);
  return x;
}

// One warp a row.
template <class C>
__global__ void write_stand_ins(const __grid_constant__ Arguments args) {
  using Element = typename C::Element;
  constexpr int kPairs = C::kHeadDim / 2, kReads = (kPairs + 31) / 32;
  int const lane = threadIdx.x % 32, row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (row >= args.stand_in_rows()) return;
  int64_t const head = blockIdx.y, n = args.n();
  auto const* log_weights = args.log_weights + head * C::kMembers * n;
  auto const* pairs = static_cast<uint32_t const*>(args.representatives) + head * C::kMembers * n * kPairs;
  auto read = [&](int64_t member, int64_t block, int i, float (&numbers)[2]) {
    int const pair = lane + 32 * i;
    uint32_t const loaded = pair < kPairs ? pairs[(member * n + block) * kPairs + pair] : 0u;
    auto const* element = reinterpret_cast<Element const*>(&loaded);
    CUTE_UNROLL
    for (int e = 0; e < 2; ++e) numbers[e] = float(element[e]);
  };

  float mean[kReads][2] = {};
  float number = 0.f, spread = 0.f;
  int const first = (row - kFirstRows) * kPeakBlocks;  // block
  if (row < kFirstRows) {
    int const member = row + 1, block = first_block(args, int(head) / args.kv_heads);
    if (member < C::kMembers && block < n && log_weights[member * n + block] != -INFINITY) {
      number = 1.f;
      CUTE_UNROLL
      for (int i = 0; i < kReads; ++i) read(member, block, i, mean[i]);
    }
  } else if (first + kPeakBlocks <= n) {
    float of_block[kPeakBlocks][kReads][2], share[kPeakBlocks];
    CUTE_UNROLL
    for (int b = 0; b < kPeakBlocks; ++b) {
      share[b] = exp2f(log_weights[first + b] * kLog2E);
      number += share[b];
      CUTE_UNROLL
      for (int i = 0; i < kReads; ++i) read(0, first + b, i, of_block[b][i]);
    }
    float const inverse = number > 0.f ? 1.f / number : 0.f;
    float apart = 0.f;
    CUTE_UNROLL
    for (int b = 0; b < kPeakBlocks; ++b) {
      share[b] *= inverse;
      spread += share[b] * args.spreads[head * C::kMembers * n + first + b];
      CUTE_UNROLL
      for (int i = 0; i < kReads; ++i) {
        CUTE_UNROLL
        for (int e = 0; e < 2; ++e) mean[i][e] = fmaf(share[b], of_block[b][i][e], mean[i][e]);
      }
    }
    CUTE_UNROLL
    for (int b = 0; b < kPeakBlocks; ++b) {
      CUTE_UNROLL
      for (int i = 0; i < kReads; ++i) {
        CUTE_UNROLL
        for (int e = 0; e < 2; ++e) {
          float const difference = of_block[b][i][e] - mean[i][e];
          apart = fmaf(share[b] * difference, difference, apart);
        }
      }
    }
    spread += warp_sum(apart) / C::kHeadDim;
    // Less the head's common key, whose score rows know: what is rounded is small where keys have much in common.
    CUTE_UNROLL
    for (int i = 0; i < kReads; ++i) {
      float common[2];
      read(0, 0, i, common);
      CUTE_UNROLL
      for (int e = 0; e < 2; ++e) mean[i][e] -= common[e];
    }
  }

  int64_t const place = head * args.stand_in_rows() + row;
  auto* written = static_cast<uint32_t*>(args.stand_ins) + place * kPairs;
  CUTE_UNROLL
  for (int i = 0; i < kReads; ++i) {
    Element const rounded[2] = {Element(mean[i][0]), Element(mean[i][1])};
    if (lane + 32 * i < kPairs) written[lane + 32 * i] = *reinterpret_cast<uint32_t const*>(rounded);
  }
  if (lane == 0) stand_in_terms(args)[place] = make_float2(number > 0.f ? log2f(number) : -INFINITY, spread);
}

}  // namespace sampleattn::sm90::peaks
