// Variables in global memory: one block each on every device that asks for it, of zeros.
#include <cstring>
#include <map>
#include <string>

#include "fake_cuda/runtime.h"

namespace fake_cuda {

struct Variable {
  std::string name;
  size_t bytes;
  std::map<int, void*> blocks = {};  // by device
};

// By the host's address that stands for one.
static std::map<const void*, Variable>& variables() {
  static auto* all = new std::map<const void*, Variable>;
  return *all;
}

static void* block_of(Variable& v, int device) {
  void*& block = v.blocks[device];
  if (!block && allocate(&block, v.bytes, device) == cudaSuccess) std::memset(host_address(block), 0, v.bytes);
  return block;
}

void* variable_on(int device, const char* name) {
  for (auto& [host, v] : variables())
    if (v.name == name) return block_of(v, device);
  return nullptr;
}

}  // namespace fake_cuda

using namespace fake_cuda;

FAKE_CUDA_API void __cudaRegisterVar(void**, char* host, char*, const char* name, int, size_t bytes, int, int) {
  Lock lock(mutex());
  variables().insert_or_assign(host, Variable{name, bytes});
}
FAKE_CUDA_API cudaError_t cudaMemcpyFromSymbolAsync(void* to, const void* symbol, size_t bytes, size_t offset,
                                                    cudaMemcpyKind kind, cudaStream_t s) {
  Lock lock(mutex());
  if (const cudaError_t e = enter()) return e;
  const auto known = variables().find(symbol);
  if (known == variables().end()) return fail(cudaErrorInvalidSymbol, "a symbol that is no variable");
  if (offset + bytes > known->second.bytes) return fail(cudaErrorInvalidValue, "a copy beyond a variable");
  const auto* const block = static_cast<const char*>(block_of(known->second, find(s)->device));
  return block ? copy(to, block + offset, bytes, kind, s) : cudaErrorMemoryAllocation;
}
