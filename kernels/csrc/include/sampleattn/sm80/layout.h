// Where elements lie in shared memory, and which of them each lane of a warp hands to ldmatrix. Plain index arithmetic:
// tests/kernels/csrc runs it on the host.
#pragma once

#include "sampleattn/cuda/tile.h"

namespace sampleattn::sm80 {

constexpr int kVector = 8;  // elements of 16 bytes: what one lane copies, and a row of an 8 x 8 matrix of ldmatrix

// A tile of kRows x kColumns elements of 2 bytes, cut into groups of 64 columns (32 where the head dim asks for it).
// Within a group, the vectors of a row are permuted so that 8 rows of a column of vectors lie in different banks.
template <int kRows, int kColumns>
struct SharedTile {
  static constexpr int kVectors = kColumns / kVector;  // of a row
  static constexpr int kGroup = kVectors % 8 == 0 ? 8 : 4;
  static constexpr int kElements = kRows * kColumns;
  static_assert(kColumns % (kGroup * kVector) == 0);

  // First element of a vector of a row.
  SAMPLEATTN_DEVICE static constexpr int offset(int row, int vector) {
    int const turn = kGroup == 8 ? row % 8 : row / 2 % 4;
    return ((vector / kGroup * kRows + row) * kGroup + (vector % kGroup ^ turn)) * kVector;
  }
};

// The row and vector, within a 16 x 16 tile, whose address a lane hands to ldmatrix.x4.
struct LaneVector {
  int row, vector;
};

// Rows are queries, columns the head dim; register i is operand A's register i of mma.m16n8k16.
SAMPLEATTN_DEVICE constexpr LaneVector query_vector(int lane) { return {lane % 16, lane / 16}; }

// Rows are keys, columns the head dim; registers 0 and 1 are operand B for keys 0 to 7, 2 and 3 for keys 8 to 15.
SAMPLEATTN_DEVICE constexpr LaneVector key_vector(int lane) { return {lane % 8 + lane / 16 * 8, lane / 8 % 2}; }

// Rows are keys, columns the head dim of values, transposed on the way; registers 0 and 1 are operand B for columns 0
// to 7, 2 and 3 for columns 8 to 15.
SAMPLEATTN_DEVICE constexpr LaneVector value_vector(int lane) { return {lane % 16, lane / 16}; }

// Compile-time shape of one kernel.
template <class Element_, int kHeadDim_, int kHeadDimV_>
struct Config {
  using Element = Element_;
  static constexpr int kHeadDim = kHeadDim_, kHeadDimV = kHeadDimV_;
  static constexpr int kThreads = kTileRows / 16 * 32;
  using Queries = SharedTile<kTileRows, kHeadDim>;
  using Keys = SharedTile<kKeyRun, kHeadDim>;
  using Values = SharedTile<kKeyRun, kHeadDimV>;
  static constexpr int kSharedBytes = (Queries::kElements + Keys::kElements + Values::kElements) * 2;
};

}  // namespace sampleattn::sm80
