// Where elements lie in shared memory, and which of them each lane of a warp hands to ldmatrix. Plain index arithmetic:
// tests/kernels/csrc runs it on the host.
#pragma once

#include "shared/arithmetic.h"

namespace sampleattn {

constexpr int kVector = 8;  // elements of 16 bytes: what one lane copies, and a row of an 8 x 8 matrix of ldmatrix

// A tile of kRows x kColumns elements of 2 bytes, cut into groups of 64 columns, or of 32. Within a group, the vectors of
// a row are permuted so that 8 rows of a column of vectors lie in different banks.
template <int kRows, int kColumns>
struct SharedTile {
  static constexpr int kVectors = kColumns / kVector;  // of a row
  static constexpr int kGroup = kVectors % 8 == 0 ? 8 : 4;
  static constexpr int kElements = kRows * kColumns;
  static_assert(kColumns % (kGroup * kVector) == 0);

  // First element of a vector of a row.
  SAMPLEATTN_DEVICE static constexpr int offset(int row, int vector) {
    return ((vector / kGroup * kRows + row) * kGroup + (vector % kGroup ^ row / (8 / kGroup) % kGroup)) * kVector;
  }
};

// The row and vector, within a 16 x 16 tile, whose address a lane hands to ldmatrix.x4. Rows are the vectors that are
// multiplied, columns their dimensions.
struct LaneVector {
  int row, vector;
};

// Register i is operand A's register i of mma.m16n8k16.
SAMPLEATTN_DEVICE constexpr LaneVector vector_of_a(int lane) { return {lane % 16, lane / 16}; }

// Registers 0 and 1 are operand B for rows 0 to 7, 2 and 3 for rows 8 to 15.
SAMPLEATTN_DEVICE constexpr LaneVector vector_of_b(int lane) { return {lane % 8 + lane / 16 * 8, lane / 8 % 2}; }

}  // namespace sampleattn
