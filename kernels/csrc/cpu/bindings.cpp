#include <torch/csrc/stable/library.h>

// Schemas live in Python (kernels/ops.py); this library adds the CPU implementations.
STABLE_TORCH_LIBRARY_IMPL(sampleattn, CPU, library) { (void)library; }
