#include "sampleattn/sm80/launch.h"

namespace sampleattn::sm80 {

Error forward_128_128(Arguments const& args, cudaStream_t stream) { return launch_either<128, 128>(args, stream); }

}  // namespace sampleattn::sm80
