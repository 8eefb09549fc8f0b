#include "sampleattn/sm90/adaptive/launch.h"

namespace sampleattn::sm90::adaptive {

Error select_128(Arguments const& args, int thread_blocks, cudaStream_t stream) {
  return select<128>(args, thread_blocks, stream);
}

}  // namespace sampleattn::sm90::adaptive
