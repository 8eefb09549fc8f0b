#include "sampleattn/sm90/launch_all.h"

namespace sampleattn::sm90 {

Error means_128_128(Arguments const& args, int multiprocessors, cudaStream_t stream) {
  return launch_with_means<128, 128, 128, 2, 2, 2>(args, multiprocessors, stream);
}

}  // namespace sampleattn::sm90
