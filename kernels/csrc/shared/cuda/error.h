// What can go wrong on the host side of a launch.
#pragma once

#include <cuda_runtime.h>

namespace sampleattn {

struct Error {
  char const* what = nullptr;  // null: no error
  int code = 0;

  explicit operator bool() const { return what != nullptr; }
};

inline Error to_error(cudaError_t status) {
  return status == cudaSuccess ? Error{} : Error{cudaGetErrorString(status), int(status)};
}

}  // namespace sampleattn
