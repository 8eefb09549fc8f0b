// Vectors of the instruction set that the including file is compiled for, on compiler vector extensions.
// Everything has internal linkage: the same names are compiled once per instruction set.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

namespace sampleattn::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kPanelVectors = 4;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
constexpr int kPanelVectors = 2;
#else
constexpr int kLanes = 4;
constexpr int kPanelVectors = 2;
#endif
constexpr float kInf = __builtin_inff();
constexpr int kPanel = kLanes * kPanelVectors;  // columns of a packed panel; the last one may be narrower

// may_alias and an alignment of 4: vectors are read from and written to plain float arrays.
typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t IntVec __attribute__((vector_size(kLanes * 4)));
typedef float UnalignedVec __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));
typedef int32_t UnalignedIntVec __attribute__((vector_size(kLanes * 4), aligned(4), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const UnalignedVec*>(p); }
inline IntVec load(const int32_t* p) { return *reinterpret_cast<const UnalignedIntVec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<UnalignedVec*>(p) = v; }
inline Vec splat(float x) { return x - Vec{}; }  // not x + Vec{}, which turns -0 into 0 and so is an addition
inline IntVec splat(int32_t x) { return IntVec{} + x; }
inline Vec max(Vec a, Vec b) { return a > b ? a : b; }
inline Vec min(Vec a, Vec b) { return a < b ? a : b; }

template <int... I>
inline IntVec iota(std::integer_sequence<int, I...>) {
  return IntVec{I...};
}
inline IntVec iota() { return iota(std::make_integer_sequence<int, kLanes>{}); }

template <int Step, int... I>
inline Vec swap_lanes(Vec v, std::integer_sequence<int, I...>) {
  return __builtin_shufflevector(v, v, (I ^ Step)...);
}

template <int Step = kLanes / 2>
inline float reduce_max(Vec v) {
  v = max(v, swap_lanes<Step>(v, std::make_integer_sequence<int, kLanes>{}));
  if constexpr (Step > 1) {
    return reduce_max<Step / 2>(v);
  } else {
    return v[0];
  }
}

template <int Step = kLanes / 2>
inline float reduce_sum(Vec v) {
  v = v + swap_lanes<Step>(v, std::make_integer_sequence<int, kLanes>{});
  if constexpr (Step > 1) {
    return reduce_sum<Step / 2>(v);
  } else {
    return v[0];
  }
}

// 2^x for x <= 0, relative error about 1e-7; below 2^-126 it is 0, and NaN stays NaN.
inline Vec exp2_nonpositive(Vec x) {
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer that sits in the low bits
  const Vec shifted = x + magic;
  const Vec f = x - (shifted - magic);  // in [-1/2, 1/2]
  Vec p = splat(1.535336188319500e-4f);
  p = p * f + 1.339887440266574e-3f;
  p = p * f + 9.618437357674640e-3f;
  p = p * f + 5.550332471162809e-2f;
  p = p * f + 2.402264791363012e-1f;
  p = p * f + 6.931472028550421e-1f;
  p = p * f + 1.0f;
  const IntVec power = (__builtin_bit_cast(IntVec, shifted) + 127) << 23;
  // x - (x + magic - magic) is not a number for -inf; the comparison below replaces it.
  return x < -126.0f ? Vec{} : p * __builtin_bit_cast(Vec, power);
}

}  // namespace
}  // namespace sampleattn::cpu
