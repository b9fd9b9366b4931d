// Defines every operator of atrousops/dispatch/schemas.inc, the one list of schemas, which Python reads as well.
// Implementations register themselves at the bottom of their own file.
// ATROUSOPS_LIBRARY: the namespace; tests have one more for the CUDA kernels run on the CPU.
#include <torch/csrc/stable/library.h>

#include <sstream>
#include <string>

#if !defined(ATROUSOPS_LIBRARY)
#define ATROUSOPS_LIBRARY atrousops
#endif
// One macro more, so that the name is replaced before it is pasted.
#define ATROUSOPS_DEFINE(name, m) STABLE_TORCH_LIBRARY(name, m)

namespace {

// A line each; the file is one raw string.
constexpr char kSchemas[] =
#include "../atrousops/dispatch/schemas.inc"
    ;

}  // namespace

ATROUSOPS_DEFINE(ATROUSOPS_LIBRARY, m) {
  std::istringstream lines(kSchemas);
  for (std::string schema; std::getline(lines, schema);) {
    if (!schema.empty()) m.def(schema.c_str());
  }
}
