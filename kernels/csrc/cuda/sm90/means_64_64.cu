#include "sampleattn/sm90/launch_all.h"

namespace sampleattn::sm90 {

Error means_64_64(Arguments const& args, int multiprocessors, cudaStream_t stream) {
  return launch_with_means<64, 64, 128, 2, 4, 4>(args, multiprocessors, stream);
}

}  // namespace sampleattn::sm90
