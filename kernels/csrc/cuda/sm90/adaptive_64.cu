#include "sampleattn/sm90/adaptive/launch.h"

namespace sampleattn::sm90::adaptive {

Error select_64(Arguments const& args, int thread_blocks, cudaStream_t stream) {
  return select<64>(args, thread_blocks, stream);
}

}  // namespace sampleattn::sm90::adaptive
