// Which rows of a query block select_budget samples, as kernels/select_budget/op.py has it.
#pragma once

#include "shared/arithmetic.h"

namespace sampleattn {

// How many rows of a query block: fewer for long prompts.
template <class Int>
SAMPLEATTN_DEVICE Int rows_of_a_block(Int rows, Int kv_len, Int block_q) {
  Int const least = rows < 4 ? rows : 4;
  for (int64_t keys = 16384; rows > least && kv_len > keys; keys *= 2) rows /= 2;
  return rows < block_q ? rows : block_q;
}

// The first of them: it moves from block to block, and a row in `step`, a power of two, follows. number: the block's in
// its prompt, which may be negative.
template <class Int>
SAMPLEATTN_DEVICE Int first_sampled_row(Int number, Int step) {
  return (5 * number + 3) & (step - 1);
}

}  // namespace sampleattn
