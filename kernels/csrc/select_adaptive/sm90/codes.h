// Representatives as bytes, which the matrix unit multiplies twice as fast, and to integers: of a block's landmarks the
// one that a row looks for most is found before any product becomes a float.
//
// A row's scores are those of the keys less any one key, plus that key's: what all have in common needs no bits. Here it
// is the mean of the head's first block, the common key; later tokens do not change it. A block's bytes are multiples of
// the 127th part of its largest difference. byte_product in kernels/select_adaptive/reference.py is the oracle's reading.
//
// A representative's row lies where the products of one block end up in one thread: row 8 g + 2 c + p of a quad of blocks
// is member 2 g + p of block c, whose products with a query row lane c of that row's four holds.
#pragma once

#include "select_adaptive/sm90/config.h"

namespace sampleattn::sm90::adaptive {

constexpr float kLargestCode = 127.f;
constexpr float kRounder = 12582912.f;  // 1.5 * 2^23: a float of this size has no fraction

CUTE_DEVICE float2* code_terms(Arguments const& args) { return reinterpret_cast<float2*>(args.code_terms); }

// What brings numbers of at most `largest` to kLargestCode; the division is rounded as others do it, too.
CUTE_DEVICE float code_factor(float largest) { return largest > 0.f ? __fdiv_rn(kLargestCode, largest) : 0.f; }

// Four numbers, times the factor, as bytes.
CUTE_DEVICE uint32_t pack_codes(float const* numbers, float factor) {
  uint32_t rounded[4];
  CUTE_UNROLL
  for (int i = 0; i < 4; ++i) rounded[i] = __float_as_uint(fmaf(numbers[i], factor, kRounder));
  return __byte_perm(__byte_perm(rounded[0], rounded[1], 0x0040), __byte_perm(rounded[2], rounded[3], 0x0040), 0x5410);
}

// One warp a block. Of each 32 elements, the eight from 8 c on are words c and c + 4 of the bytes: what a lane of an
// operand holds lies together in a row of queries. Products do not mind the order.
// kMeans: means are among the members; else the first landmark takes the mean's place, as that of any that the block
// lacks: the largest product stays what it is. A block without any is worth NaN then.
template <class C, bool kMeans = true>
__global__ void write_codes(const __grid_constant__ Arguments args) {
  constexpr int kUnits = C::kHeadDim / 8, kAtOnce = 32 / kUnits, kReads = C::kMembers / kAtOnce;
  static_assert(C::kMembers % kAtOnce == 0);
  int const lane = threadIdx.x % 32, block = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (block >= args.quad_count * 4) return;
  int64_t const head = blockIdx.y;
  int64_t const n = args.n();
  auto const* representatives = static_cast<uint4 const*>(args.representatives) + head * C::kMembers * n * kUnits;
  auto const* log_weights = args.log_weights + head * C::kMembers * n;
  int const unit = lane % kUnits;
  bool const reads = lane < kAtOnce * kUnits;
  uint4 const common = representatives[unit];
  auto const* center = reinterpret_cast<typename C::Element const*>(&common);
  float difference[kReads][8];
  float largest = 0.f;
  CUTE_UNROLL
  for (int i = 0; i < kReads; ++i) {
    int const member = i * kAtOnce + lane / kUnits;
    auto has = [&](int any) { return reads && block < n && log_weights[any * n + block] != -INFINITY; };
    int const taken = kMeans || (member > 0 && has(member)) ? member : 1;
    uint4 const loaded = has(taken) ? representatives[(taken * n + block) * kUnits + unit] : common;
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
    if (!reads) continue;
    int const member = i * kAtOnce + lane / kUnits;
    int const column = member / 2 * 8 + block % 4 * 2 + member % 2;
    auto* row = reinterpret_cast<uint32_t*>(args.codes) + (quad * 4 * C::kMembers + column) * (C::kHeadDim / 4);
    CUTE_UNROLL
    for (int half = 0; half < 2; ++half) {
      row[unit / 4 * 8 + half * 4 + unit % 4] = pack_codes(difference[i] + half * 4, factor);
    }
  }
  if (lane == 0) {
    float const spread = block < n ? args.spreads[head * C::kMembers * n + block] : 0.f;
    bool const counts = kMeans || (block < n && log_weights[n + block] != -INFINITY);
    code_terms(args)[quad * 4 + block % 4] = make_float2(counts ? largest / kLargestCode : NAN, spread);
  }
}

}  // namespace sampleattn::sm90::adaptive
