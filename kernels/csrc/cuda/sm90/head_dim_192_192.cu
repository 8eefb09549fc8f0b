#include "sampleattn/sm90/launch_all.h"

namespace sampleattn::sm90 {

Error forward_192_192(Arguments const& args, int multiprocessors, cudaStream_t stream) {
  return launch_all<192, 192, 64, 2, 2, 2>(args, multiprocessors, stream);
}

}  // namespace sampleattn::sm90
