#include "sampleattn/sm80/launch.h"

namespace sampleattn::sm80 {

Error forward_64_64(Arguments const& args, cudaStream_t stream) { return launch_either<64, 64>(args, stream); }

}  // namespace sampleattn::sm80
