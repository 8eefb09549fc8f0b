// The blocks that select_peaks keeps before it looks at any score.
#pragma once

#include "select_peaks/cuda/arguments.h"
#include "shared/cuda/error.h"

namespace sampleattn::peaks {

// Writes all words of block_mask; everything: keeps every block that causality allows.
Error write_forced(Arguments const& args, bool everything, cudaStream_t stream);

}  // namespace sampleattn::peaks
