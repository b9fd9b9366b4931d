// Chooses at run time among the instruction sets that csrc/cpu/kernels was compiled for.
#pragma once

namespace atrousops::cpu {

enum class Isa { plain, avx2, avx512 };

// The best set that this machine supports; ATROUSOPS_ISA=plain|avx2|avx512 can only lower it.
Isa isa();

}  // namespace atrousops::cpu

// Declares `name` once per instruction set, for a header that both the kernel and its caller include.
#define ATROUSOPS_DECLARE_KERNEL(name, ...) \
  namespace plain {                         \
  void name(__VA_ARGS__);                   \
  }                                         \
  namespace avx2 {                          \
  void name(__VA_ARGS__);                   \
  }                                         \
  namespace avx512 {                        \
  void name(__VA_ARGS__);                   \
  }

#if ATROUSOPS_X86
#define ATROUSOPS_SELECT(name)                                              \
  (::atrousops::cpu::isa() == ::atrousops::cpu::Isa::avx512 ? &avx512::name \
   : ::atrousops::cpu::isa() == ::atrousops::cpu::Isa::avx2 ? &avx2::name   \
                                                            : &plain::name)
#else
#define ATROUSOPS_SELECT(name) (&plain::name)
#endif
