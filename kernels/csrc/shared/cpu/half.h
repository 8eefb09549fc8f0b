// 16-bit floats as plain integers: conversions that need no compiler support and that compilers vectorise.
#pragma once

#include <cstdint>
#include <cstring>

namespace sampleattn::cpu {
namespace {

inline float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float bf16_to_float(uint16_t h) { return bits_to_float(uint32_t{h} << 16); }

inline uint16_t float_to_bf16(float value) {
  const uint32_t bits = float_to_bits(value);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
  return static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}

inline float f16_to_float(uint16_t h) {
  const uint32_t word = uint32_t{h} << 16;
  const uint32_t sign = word & 0x80000000;
  const uint32_t twice = word + word;
  const float normal = bits_to_float((twice >> 4) + (0xe0u << 23)) * 0x1.0p-112f;
  const float subnormal = bits_to_float((twice >> 17) | (126u << 23)) - 0.5f;
  return bits_to_float(sign | (twice < (1u << 27) ? float_to_bits(subnormal) : float_to_bits(normal)));
}

inline uint16_t float_to_f16(float value) {
  const uint32_t bits = float_to_bits(value);
  const uint32_t twice = bits + bits;
  const uint32_t sign = bits & 0x80000000;
  // Scaling up and down lets the FPU round to the 11 bits of a half, subnormals and overflow included.
  float base = (bits_to_float(bits & 0x7fffffff) * 0x1.0p+112f) * 0x1.0p-110f;
  const uint32_t bias = (twice & 0xff000000) < 0x71000000 ? 0x71000000 : (twice & 0xff000000);
  base = bits_to_float((bias >> 1) + 0x07800000) + base;
  const uint32_t rounded = float_to_bits(base);
  const uint32_t magnitude = ((rounded >> 13) & 0x7c00) + (rounded & 0x0fff);
  return static_cast<uint16_t>((sign >> 16) | (twice > 0xff000000 ? 0x7e00 : magnitude));
}

}  // namespace
}  // namespace sampleattn::cpu
