// What the arguments of all CUDA kernels are made of.
#pragma once

#include <cstdint>

namespace sampleattn {

// Keys of a block, and query rows of one, of the kernels that select: the only size that they take.
constexpr int kBlock = 128;

enum class DataType { kBFloat16, kFloat16 };

// In elements; the last dimension is contiguous.
struct Strides {
  int64_t batch, head, row;
};

}  // namespace sampleattn
