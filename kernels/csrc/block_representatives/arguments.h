// The arguments of block_representatives, as kernels/block_representatives/op.py has them.
#pragma once

#include <cstdint>
#include <optional>

namespace sampleattn {

template <class Tensor>
struct BlockRepresentatives {
  static constexpr char kSchema[] =
      "(Tensor key, Tensor? key_segment, int block_k, int landmarks) -> (Tensor, Tensor, Tensor)";

  Tensor key;
  std::optional<Tensor> key_segment;
  int64_t block_k, landmarks;
};

}  // namespace sampleattn
