// Compiled once per instruction set: SAMPLEATTN_ISA is its name, the compiler's flags say which it is.
#include "shared/cpu/isa_kernels.h"

#define SAMPLEATTN_CONCAT_(a, b) a##b
#define SAMPLEATTN_CONCAT(a, b) SAMPLEATTN_CONCAT_(a, b)
#define SAMPLEATTN_STRING_(a) #a
#define SAMPLEATTN_STRING(a) SAMPLEATTN_STRING_(a)

namespace sampleattn::cpu {

const Isa& SAMPLEATTN_CONCAT(isa_, SAMPLEATTN_ISA)() {
  static constexpr Isa isa = make_isa(SAMPLEATTN_STRING(SAMPLEATTN_ISA));
  return isa;
}

}  // namespace sampleattn::cpu
