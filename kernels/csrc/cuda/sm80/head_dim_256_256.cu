#include "sampleattn/sm80/launch.h"

namespace sampleattn::sm80 {

Error forward_256_256(Arguments const& args, cudaStream_t stream) { return launch_either<256, 256>(args, stream); }

}  // namespace sampleattn::sm80
