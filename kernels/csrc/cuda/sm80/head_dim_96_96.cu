#include "sampleattn/sm80/launch.h"

namespace sampleattn::sm80 {

Error forward_96_96(Arguments const& args, cudaStream_t stream) { return launch_either<96, 96>(args, stream); }

}  // namespace sampleattn::sm80
