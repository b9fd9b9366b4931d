#include "host_cuda/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if defined(__x86_64__) && !defined(ATROUSOPS_UCONTEXT)
#define ATROUSOPS_ASSEMBLY_SWITCH 1
// (void** save, void* to): callee-saved registers go to the stack, and the stack pointer to *save.
asm(R"(
.text
.p2align 4
.globl atrousops_switch_stack
.hidden atrousops_switch_stack
.type atrousops_switch_stack, @function
atrousops_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size atrousops_switch_stack, .-atrousops_switch_stack
)");
extern "C" void atrousops_switch_stack(void** save, void* to);
#endif

namespace atrousops::host_cuda {

static size_t guard_bytes() {
  static const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return page;
}

void Stacks::reserve(int count) {
  const size_t each = kBytes + guard_bytes();
  for (; count_ < count; count_ += kSlab) {
    void* slab =
        mmap(nullptr, each * kSlab, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (slab == MAP_FAILED) throw std::bad_alloc();
    for (int i = 0; i < kSlab; ++i) mprotect(static_cast<char*>(slab) + i * each, guard_bytes(), PROT_NONE);
    slabs_[count_ / kSlab] = static_cast<char*>(slab);
  }
}

void Stacks::start(int index, Context& context, void (*entry)()) {
  char* bottom = slabs_[index / kSlab] + (index % kSlab) * (kBytes + guard_bytes()) + guard_bytes();
  context.bottom = bottom;
  context.size = kBytes;
  context.fake_stack = nullptr;
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(bottom, kBytes);
#endif
#if defined(ATROUSOPS_ASSEMBLY_SWITCH)
  // Six registers, the address that `ret` goes to, and one word more: a function begins 8 bytes off a multiple of 16.
  void** top = reinterpret_cast<void**>(bottom + kBytes) - 8;
  for (int i = 0; i < 8; ++i) top[i] = nullptr;
  top[6] = reinterpret_cast<void*>(entry);
  context.stack_pointer = top;
#else
  getcontext(&context.context);
  context.context.uc_stack.ss_sp = bottom;
  context.context.uc_stack.ss_size = kBytes;
  context.context.uc_link = nullptr;
  makecontext(&context.context, entry, 0);
#endif
}

void switch_context(Context& from, Context& to, bool last) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(last ? nullptr : &from.fake_stack, to.bottom, to.size);
#endif
#if defined(ATROUSOPS_ASSEMBLY_SWITCH)
  atrousops_switch_stack(&from.stack_pointer, to.stack_pointer);
#else
  swapcontext(&from.context, &to.context);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

void arrived_on_new_stack(Context& from) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &from.bottom, &from.size);
#endif
}

}  // namespace atrousops::host_cuda
