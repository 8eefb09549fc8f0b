// Representatives as bytes, which the matrix unit multiplies twice as fast, and with integers for results: of a block's
// landmarks the one that a row looks for most is found before any score is a float.
//
// A row's scores are those of the keys less any one key, plus that key's: what all have in common needs no bits. It is the
// mean of the first block here. The bytes of a block are multiples of its largest difference's 127th part.
#pragma once

#include "sampleattn/sm90/adaptive/config.h"

namespace sampleattn::sm90::adaptive {

constexpr float kLargestCode = 127.f;
constexpr float kRounder = 12582912.f;  // 1.5 * 2^23: a float of this size has no fraction

// What brings numbers of at most `largest` to kLargestCode; the division is rounded as others do it, too.
CUTE_DEVICE float code_factor(float largest) { return largest > 0.f ? __fdiv_rn(kLargestCode, largest) : 0.f; }

// Four numbers, times the factor, as bytes.
CUTE_DEVICE uint32_t pack_codes(float const* numbers, float factor) {
  uint32_t rounded[4];
  CUTE_UNROLL
  for (int i = 0; i < 4; ++i) rounded[i] = __float_as_uint(fmaf(numbers[i], factor, kRounder));
  return __byte_perm(__byte_perm(rounded[0], rounded[1], 0x0040), __byte_perm(rounded[2], rounded[3], 0x0040), 0x5410);
}

// A lane of a row's four holds elements 8 (4 j + c) to 8 (4 j + c) + 7 of each 32 as an operand's words c and c + 4: what
// it reads of a row lies together.
template <class C>
__global__ void write_codes(const __grid_constant__ Arguments args) {
  constexpr int kUnits = C::kHeadDim / 8, kReads = C::kMembers * kUnits / 32;
  int const lane = threadIdx.x % 32, block = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (block >= args.quad_count * 4) return;
  int64_t const head = blockIdx.y;
  int64_t const n = args.n();
  auto const* representatives = static_cast<uint4 const*>(args.representatives) + head * C::kMembers * n * kUnits;
  auto const* log_weights = args.log_weights + head * C::kMembers * n;
  int const unit = lane % kUnits;
  uint4 const common = representatives[unit];
  auto const* center = reinterpret_cast<typename C::Element const*>(&common);
  float difference[kReads][8];
  float largest = 0.f;
  CUTE_UNROLL
  for (int i = 0; i < kReads; ++i) {
    int const member = i * (32 / kUnits) + lane / kUnits;
    bool const exists = block < n && log_weights[member * n + block] != -INFINITY;
    uint4 const loaded = exists ? representatives[(member * n + block) * kUnits + unit] : common;
    auto const* element = reinterpret_cast<typename C::Element const*>(&loaded);
    CUTE_UNROLL
    for (int e = 0; e < 8; ++e) {
      difference[i][e] = float(element[e]) - float(center[e]);
      largest = fmaxf(largest, fabsf(difference[i][e]));
    }
  }
  CUTE_UNROLL
  for (int side = 16; side > 0; side /= 2) largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, side));
  float const factor = code_factor(largest);
  int64_t const quad = head * args.quad_count + block / 4;
  CUTE_UNROLL
  for (int i = 0; i < kReads; ++i) {
    int const member = i * (32 / kUnits) + lane / kUnits;
    int const column = member / 2 * 8 + block % 4 * 2 + member % 2;
    auto* row = reinterpret_cast<uint32_t*>(args.codes) + (quad * 4 * C::kMembers + column) * (C::kHeadDim / 4);
    CUTE_UNROLL
    for (int half = 0; half < 2; ++half) {
      row[unit / 4 * 8 + half * 4 + unit % 4] = pack_codes(difference[i] + half * 4, factor);
    }
  }
  if (lane == 0) {
    float const spread = block < n ? args.spreads[head * C::kMembers * n + block] : 0.f;
    args.code_terms[quad * 4 + block % 4] = make_float2(largest / kLargestCode, spread);
  }
}

}  // namespace sampleattn::sm90::adaptive
