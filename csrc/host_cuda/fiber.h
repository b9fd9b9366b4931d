// Stacks that take turns on one thread: assembly on x86-64, ucontext elsewhere, told to AddressSanitizer.
#pragma once

#include <cstddef>

#if !defined(__x86_64__) || defined(ATROUSOPS_UCONTEXT)
#include <ucontext.h>
#endif

namespace atrousops::host_cuda {

// A point of execution to come back to.
struct Context {
#if defined(__x86_64__) && !defined(ATROUSOPS_UCONTEXT)
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
  // AddressSanitizer's view of the stack.
  void* fake_stack = nullptr;
  const void* bottom = nullptr;
  size_t size = 0;
};

// Stacks of one size with a guard page below each, kept for the life of the process; the system gives memory to those
// pages only that were once used.
class Stacks {
 public:
  static constexpr size_t kBytes = 256 << 10;
  // Makes sure of `count` stacks.
  void reserve(int count);
  // Prepares `context` to call entry() on stack `index`; entry must not return.
  void start(int index, Context& context, void (*entry)());

 private:
  static constexpr int kSlab = 64;
  static constexpr int kMost = 8 * 1024;
  char* slabs_[kMost / kSlab] = {};
  int count_ = 0;
};

// Leaves `from` and goes on at `to`. `last`: the stack that is left is not needed any more.
void switch_context(Context& from, Context& to, bool last = false);
// The first thing to call on a new stack; `from` is who came here.
void arrived_on_new_stack(Context& from);

}  // namespace atrousops::host_cuda
