#include "sampleattn/sm90/launch_all.h"

namespace sampleattn::sm90 {

Error forward_96_96(Arguments const& args, int multiprocessors, cudaStream_t stream) {
  return launch_all<96, 96, 128, 2, 3, 3>(args, multiprocessors, stream);
}

}  // namespace sampleattn::sm90
