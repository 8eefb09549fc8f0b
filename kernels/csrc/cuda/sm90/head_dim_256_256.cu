#include "sampleattn/sm90/launch_all.h"

namespace sampleattn::sm90 {

Error forward_256_256(Arguments const& args, int multiprocessors, cudaStream_t stream) {
  return launch_all<256, 256, 64, 1, 2, 2>(args, multiprocessors, stream);
}

}  // namespace sampleattn::sm90
