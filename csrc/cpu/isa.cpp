#include "cpu/isa.h"

#include <cstdlib>
#include <cstring>

namespace atrousops::cpu {

static Isa best() {
#if ATROUSOPS_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  return avx512 ? Isa::avx512 : avx2 ? Isa::avx2 : Isa::plain;
#else
  return Isa::plain;
#endif
}

static Isa choose() {
  const Isa top = best();
  const char* wish = std::getenv("ATROUSOPS_ISA");
  if (wish == nullptr) return top;
  if (std::strcmp(wish, "plain") == 0) return Isa::plain;
  if (std::strcmp(wish, "avx2") == 0 && top >= Isa::avx2) return Isa::avx2;
  return top;
}

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

}  // namespace atrousops::cpu

// For `atrousops info`, which asks through ctypes: the extension `_C` does not link this library.
extern "C" __attribute__((visibility("default"))) const char* atrousops_cpu_isa() {
  static constexpr const char* kNames[] = {"plain", "avx2", "avx512"};
  return kNames[static_cast<int>(atrousops::cpu::isa())];
}
