// From head dims that are known when a call is made to the kernels that are compiled for them.
#pragma once

#include "shared/cuda/error.h"

namespace sampleattn {

struct HeadDims {
  int key, value;

  constexpr bool operator==(HeadDims const&) const = default;
};

template <HeadDims... kCompiled>
struct HeadDimsList {
  // launch.template operator()<kKey, kValue>() of the head dims that are asked for, or an error.
  template <class Launch>
  static Error dispatch(HeadDims asked, Launch const& launch) {
    Error error{"no kernel for this head_dim", asked.key};
    ((asked == kCompiled && (error = launch.template operator()<kCompiled.key, kCompiled.value>(), true)) || ...);
    return error;
  }
};

}  // namespace sampleattn
