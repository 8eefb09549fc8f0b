# The CUDA library, for Hopper: every other device runs Triton. Included only when SAMPLEATTN_CUDA_ARCHS is set; needs
# nvcc, but neither a GPU nor a CUDA build of torch.
if(NOT SAMPLEATTN_CUDA_ARCHS STREQUAL "90a")
  message(FATAL_ERROR "SAMPLEATTN_CUDA_ARCHS must be 90a, Hopper (or empty: no CUDA library, and Triton on every "
                      "device), got '${SAMPLEATTN_CUDA_ARCHS}'")
endif()

# CUTLASS headers from the pinned wheel; nothing is downloaded here.
set(SAMPLEATTN_CUTLASS_DIR "" CACHE PATH "CUTLASS's include folder; found through the Python interpreter if empty")
if(NOT SAMPLEATTN_CUTLASS_DIR)
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c
            "import importlib.util as u; s = u.find_spec('cutlass_library'); print(s.submodule_search_locations[0] + '/source/include' if s else '', end='')"
    OUTPUT_VARIABLE SAMPLEATTN_CUTLASS_DIR)
endif()
if(NOT EXISTS "${SAMPLEATTN_CUTLASS_DIR}/cute/tensor.hpp")
  message(FATAL_ERROR "CUTLASS's headers are needed for SAMPLEATTN_CUDA_ARCHS: 'pip install --no-deps "
                      "nvidia-cutlass==4.2.0.0', or pass -DSAMPLEATTN_CUTLASS_DIR=<cutlass>/include")
endif()

set(CMAKE_CUDA_ARCHITECTURES 90a-real)
enable_language(CUDA)

file(GLOB SAMPLEATTN_CUDA_SOURCES CONFIGURE_DEPENDS kernels/csrc/*/*.cu kernels/csrc/*/cuda/*.cu)
add_library(_C_cuda MODULE ${SAMPLEATTN_CUDA_SOURCES})

# Kernels for Hopper are compiled for each head dim by itself: sampleattn_head_dims(<op> <of keys>,<of values> ...).
set(SAMPLEATTN_GENERATED "${CMAKE_CURRENT_BINARY_DIR}/csrc")
macro(sampleattn_head_dims op)
  set(${op}_HEAD_DIMS "")
  foreach(dims ${ARGN})
    string(REGEX MATCH "^(.+),(.+)$" dims ${dims})
    set(HEAD_DIM ${CMAKE_MATCH_1})
    set(VALUE_HEAD_DIM ${CMAKE_MATCH_2})
    list(APPEND ${op}_HEAD_DIMS "HeadDims{${HEAD_DIM}, ${VALUE_HEAD_DIM}}")
    set(source "${SAMPLEATTN_GENERATED}/${op}/head_dim_${HEAD_DIM}_${VALUE_HEAD_DIM}.cu")
    configure_file(kernels/csrc/${op}/sm90/head_dim.cu.in "${source}" @ONLY)
    target_sources(_C_cuda PRIVATE "${source}")
  endforeach()
  list(JOIN ${op}_HEAD_DIMS ", " ${op}_HEAD_DIMS)
endmacro()
sampleattn_head_dims(block_sparse_attention 64,64 96,96 128,128 192,128 192,192 256,256 512,512)
sampleattn_head_dims(block_mean_attention 64,64 128,128)
sampleattn_head_dims(select_adaptive 64,64 96,96 128,128 192,192 256,256)
sampleattn_head_dims(select_peaks 64,64 96,96 128,128 192,192 256,256)
sampleattn_head_dims(select_budget 64,64 96,96 128,128 192,192 256,256)
configure_file(kernels/csrc/shared/cuda/head_dims.h.in "${SAMPLEATTN_GENERATED}/shared/cuda/head_dims.h" @ONLY)

set_target_properties(_C_cuda PROPERTIES PREFIX "" CXX_STANDARD 20 CUDA_STANDARD 20 CUDA_STANDARD_REQUIRED ON
  CUDA_VISIBILITY_PRESET hidden CUDA_RUNTIME_LIBRARY Static
  CUDA_COMPILER_LAUNCHER "${Python_EXECUTABLE};${CMAKE_CURRENT_SOURCE_DIR}/cmake/check_ptxas.py")
target_compile_definitions(_C_cuda PRIVATE USE_CUDA TORCH_TARGET_VERSION=0x020b000000000000)
target_include_directories(_C_cuda PRIVATE kernels/csrc "${SAMPLEATTN_GENERATED}")
target_include_directories(_C_cuda SYSTEM PRIVATE "${SAMPLEATTN_TORCH_DIR}/include" "${SAMPLEATTN_CUTLASS_DIR}")
# NDEBUG: the asserts inside CuTe become calls, and a call ends the overlap of matrix products.
target_compile_options(_C_cuda PRIVATE -O3 -DNDEBUG --expt-relaxed-constexpr -Xptxas=-v -use_fast_math)
target_link_directories(_C_cuda PRIVATE "${SAMPLEATTN_TORCH_DIR}/lib")
# libtorch is named although the CPU build of torch has none of the symbols that need it: a CUDA build does.
target_link_options(_C_cuda PRIVATE -Wl,--no-as-needed)
target_link_libraries(_C_cuda PRIVATE torch torch_cpu c10)
install(TARGETS _C_cuda LIBRARY DESTINATION sa_compile/kernels)
