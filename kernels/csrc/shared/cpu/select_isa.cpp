#include <cstdlib>
#include <string_view>

#include "shared/cpu/isa.h"

namespace sampleattn::cpu {
namespace {

const Isa& detect() {
#if defined(__x86_64__)
  const char* variable = std::getenv("ATEN_CPU_CAPABILITY");  // torch's own limit holds here as well
  const std::string_view limit = variable ? variable : "";
  const bool may_avx2 = limit != "default" && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool may_avx512 = may_avx2 && limit != "avx2" && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq");
  if (may_avx512) return isa_avx512();
  if (may_avx2) return isa_avx2();
#endif
  return isa_baseline();
}

}  // namespace

const Isa& select_isa() {
  static const Isa& isa = detect();
  return isa;
}

}  // namespace sampleattn::cpu
