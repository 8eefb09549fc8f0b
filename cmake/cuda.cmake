# The CUDA library. Included only when SAMPLEATTN_CUDA_ARCHS is set, e.g. -DSAMPLEATTN_CUDA_ARCHS=80,90a; needs nvcc, but
# neither a GPU nor a CUDA build of torch.
string(REPLACE "," ";" SAMPLEATTN_ARCHS "${SAMPLEATTN_CUDA_ARCHS}")
foreach(arch IN LISTS SAMPLEATTN_ARCHS)
  if(NOT arch MATCHES "^(80|90a)$")
    message(FATAL_ERROR "SAMPLEATTN_CUDA_ARCHS must be a list of 80 and 90a such as 80,90a (or empty: no CUDA library), "
                        "got '${SAMPLEATTN_CUDA_ARCHS}'")
  endif()
endforeach()

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

# Machine code for each; that of 80 also as PTX, which newer GPUs compile for themselves.
set(SAMPLEATTN_CODE_80 80)
set(SAMPLEATTN_CODE_90a 90a-real)
set(CMAKE_CUDA_ARCHITECTURES "")
foreach(arch IN LISTS SAMPLEATTN_ARCHS)
  list(APPEND CMAKE_CUDA_ARCHITECTURES ${SAMPLEATTN_CODE_${arch}})
endforeach()
enable_language(CUDA)

function(sampleattn_cuda_target target)
  set_target_properties(${target} PROPERTIES CXX_STANDARD 20 CUDA_STANDARD 20 CUDA_STANDARD_REQUIRED ON
    CUDA_VISIBILITY_PRESET hidden CUDA_RUNTIME_LIBRARY Static POSITION_INDEPENDENT_CODE ON
    CUDA_COMPILER_LAUNCHER "${Python_EXECUTABLE};${CMAKE_CURRENT_SOURCE_DIR}/cmake/check_ptxas.py")
  target_compile_definitions(${target} PRIVATE USE_CUDA TORCH_TARGET_VERSION=0x020b000000000000)
  target_include_directories(${target} PRIVATE kernels/csrc/include)
  target_include_directories(${target} SYSTEM PRIVATE "${SAMPLEATTN_TORCH_DIR}/include" "${SAMPLEATTN_CUTLASS_DIR}")
  # NDEBUG: the asserts inside CuTe become calls, and a call ends the overlap of matrix products.
  target_compile_options(${target} PRIVATE -O3 -DNDEBUG --expt-relaxed-constexpr -Xptxas=-v -use_fast_math)
endfunction()

# Bindings and work list for all architectures, each attention kernel for its own.
file(GLOB SAMPLEATTN_CUDA_SOURCES CONFIGURE_DEPENDS kernels/csrc/cuda/*.cu)
add_library(_C_cuda MODULE ${SAMPLEATTN_CUDA_SOURCES})
sampleattn_cuda_target(_C_cuda)
set_target_properties(_C_cuda PROPERTIES PREFIX "")
foreach(arch IN LISTS SAMPLEATTN_ARCHS)
  string(REGEX MATCH "^[0-9]+" number ${arch})
  file(GLOB SAMPLEATTN_SM_SOURCES CONFIGURE_DEPENDS kernels/csrc/cuda/sm${number}/*.cu)
  add_library(sampleattn_sm${number} OBJECT ${SAMPLEATTN_SM_SOURCES})
  sampleattn_cuda_target(sampleattn_sm${number})
  set_target_properties(sampleattn_sm${number} PROPERTIES CUDA_ARCHITECTURES "${SAMPLEATTN_CODE_${arch}}")
  target_sources(_C_cuda PRIVATE $<TARGET_OBJECTS:sampleattn_sm${number}>)
  target_compile_definitions(_C_cuda PRIVATE SAMPLEATTN_SM${number})
endforeach()
target_link_directories(_C_cuda PRIVATE "${SAMPLEATTN_TORCH_DIR}/lib")
# libtorch is named although the CPU build of torch has none of the symbols that need it: a CUDA build does.
target_link_options(_C_cuda PRIVATE -Wl,--no-as-needed)
target_link_libraries(_C_cuda PRIVATE torch torch_cpu c10)
install(TARGETS _C_cuda LIBRARY DESTINATION sa_compile/kernels)
