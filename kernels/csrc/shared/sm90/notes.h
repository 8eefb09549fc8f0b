// How a warp reads what the producer left in shared memory.
#pragma once

#include <climits>

#include <cute/config.hpp>

namespace sampleattn::sm90 {

// What the producer wrote is read by the lane that will give the stage back: no other lane's reading has to be ordered
// before that. `agree` makes it known to the warp; the maximum is how a word gets into a register that the warp shares.
CUTE_DEVICE int read_alone(int const& shared) { return threadIdx.x % 32 == 0 ? shared : INT_MIN; }
CUTE_DEVICE int agree(int own) { return __reduce_max_sync(0xffffffffu, own); }

}  // namespace sampleattn::sm90
