// Rows of a block mask: a bit a key block, in words of 32.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

namespace sampleattn::cpu {

inline bool has_bit(const uint32_t* words, int64_t i) { return words[i / 32] >> (i % 32) & 1; }
inline void set_bit(uint32_t* words, int64_t i) { words[i / 32] |= uint32_t{1} << (i % 32); }
inline void clear_bit(uint32_t* words, int64_t i) { words[i / 32] &= ~(uint32_t{1} << (i % 32)); }

// Bits [0, end).
inline void set_prefix(uint32_t* words, int64_t end) {
  std::fill_n(words, end / 32, ~uint32_t{0});
  if (end % 32) words[end / 32] |= (uint32_t{1} << (end % 32)) - 1;
}

template <class F>
void for_each_set_bit(const uint32_t* words, int64_t n_words, const F& f) {
  for (int64_t w = 0; w < n_words; ++w) {
    for (uint32_t word = words[w]; word; word &= word - 1) f(w * 32 + std::countr_zero(word));
  }
}

inline int64_t count_bits(const uint32_t* words, int64_t n_words) {
  int64_t count = 0;
  for (int64_t w = 0; w < n_words; ++w) count += std::popcount(words[w]);
  return count;
}

}  // namespace sampleattn::cpu
