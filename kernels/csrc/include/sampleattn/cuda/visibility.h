// Which key blocks hold a key that may be seen, and the first of them.
#pragma once

#include "sampleattn/cuda/adaptive.h"
#include "sampleattn/cuda/error.h"

namespace sampleattn::adaptive {

// Fills args.visible and args.sinks from args.key_segment, which must not be null.
Error find_visible_blocks(Arguments const& args, cudaStream_t stream);

}  // namespace sampleattn::adaptive
