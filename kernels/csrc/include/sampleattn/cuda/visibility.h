// Which key blocks hold a key that may be seen, the first of them, and where prompts end.
#pragma once

#include "sampleattn/cuda/adaptive.h"
#include "sampleattn/cuda/error.h"

namespace sampleattn::adaptive {

// Fills args.visible, args.sinks and, if it is asked for, args.row_ends from args.key_segment, which must not be null.
Error find_visible_blocks(Arguments const& args, cudaStream_t stream);

}  // namespace sampleattn::adaptive
