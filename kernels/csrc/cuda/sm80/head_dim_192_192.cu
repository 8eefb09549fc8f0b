#include "sampleattn/sm80/launch.h"

namespace sampleattn::sm80 {

Error forward_192_192(Arguments const& args, cudaStream_t stream) { return launch_either<192, 192>(args, stream); }

}  // namespace sampleattn::sm80
