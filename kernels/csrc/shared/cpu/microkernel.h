// Register-tiled fp32 products of a row-major matrix with a packed panel; included once per instruction set.
#pragma once

#include "shared/arithmetic.h"
#include "shared/cpu/simd.h"

namespace sampleattn::cpu {
namespace {

constexpr int kRowMultiple = 8;  // rows are padded to a multiple of every tile height below

template <int Vectors>
constexpr int tile_rows() {
  if (kLanes == 16) return Vectors >= 3 ? 4 : 8;
  if (kLanes == 8) return Vectors == 2 ? 4 : 8;
#if defined(__aarch64__)
  return 8;  // 32 vector registers
#else
  return 4;
#endif
}

// c[r, :] = (correction ? correction[r] * c[r, :] : 0) + sum over d of a[r, d] * panel[d, :]
template <int Vectors>
inline void tile(const float* a, int64_t lda, int64_t depth, const float* panel, int64_t width, float* c, int64_t ldc,
                 const float* correction) {
  constexpr int rows = tile_rows<Vectors>();
  Vec sum[rows][Vectors];
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) {
      sum[r][v] = correction ? load(c + r * ldc + v * kLanes) * correction[r] : Vec{};
    }
  }
  for (int64_t d = 0; d < depth; ++d) {
    Vec b[Vectors];
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) b[v] = load(panel + d * width + v * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const Vec x = splat(a[r * lda + d]);
#pragma GCC unroll 8
      for (int v = 0; v < Vectors; ++v) sum[r][v] += x * b[v];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) store(c + r * ldc + v * kLanes, sum[r][v]);
  }
}

template <int Vectors>
inline void panel_product(int rows, const float* a, int64_t lda, int64_t depth, const float* panel, int64_t width,
                          float* c, int64_t ldc, const float* correction) {
  constexpr int step = tile_rows<Vectors>();
  for (int r = 0; r < rows; r += step) {
    tile<Vectors>(a + r * lda, lda, depth, panel, width, c + r * ldc, ldc, correction ? correction + r : nullptr);
  }
}

// Product with the first columns of one panel of `width`, of which there are a multiple of kLanes.
inline void panel(int rows, const float* a, int64_t lda, int64_t depth, const float* packed, int64_t width,
                  int64_t columns, float* c, int64_t ldc, const float* correction) {
  switch (columns / kLanes) {
    case 1: panel_product<1>(rows, a, lda, depth, packed, width, c, ldc, correction); break;
    case 2: panel_product<2>(rows, a, lda, depth, packed, width, c, ldc, correction); break;
#if defined(__AVX512F__)
    case 3: panel_product<3>(rows, a, lda, depth, packed, width, c, ldc, correction); break;
    case 4: panel_product<4>(rows, a, lda, depth, packed, width, c, ldc, correction); break;
#endif
  }
}

// Product with columns [begin, end) of a packed matrix of `columns` columns (a multiple of kLanes) and
// `packed_depth` rows, of which rows [depth_begin, depth_end) take part; begin is a multiple of kPanel.
inline void product(int rows, const float* a, int64_t lda, int64_t packed_depth, int64_t depth_begin, int64_t depth_end,
                    const float* packed, int64_t columns, int64_t begin, int64_t end, float* c, int64_t ldc,
                    const float* correction) {
  for (int64_t column = begin; column < end; column += kPanel) {
    const int64_t width = columns - column < kPanel ? columns - column : kPanel;
    const int64_t used = end - column < width ? round_up(end - column, kLanes) : width;
    panel(rows, a + depth_begin, lda, depth_end - depth_begin, packed + column * packed_depth + depth_begin * width,
          width, used, c + column, ldc, correction);
  }
}

}  // namespace
}  // namespace sampleattn::cpu
