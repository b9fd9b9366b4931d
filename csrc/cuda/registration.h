// ATROUSOPS_CUDA_LIBRARY(m) { implement<"op", &f, "input">(m); } at the bottom of a .cu: the CUDA key of our operators;
// on the host, the CPU key of the library that tests call. ATROUSOPS_CUDA_SCHEMAS(m) { m.def("..."); } above it: of an
// operator that no other library has.
#pragma once

#include "stable/implement.h"

#if defined(ATROUSOPS_HOST_CUDA)
#define ATROUSOPS_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(atrousops_host_cuda, CPU, m)
#define ATROUSOPS_CUDA_SCHEMAS(m) STABLE_TORCH_LIBRARY_FRAGMENT(atrousops_host_cuda, m)
#else
#define ATROUSOPS_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(atrousops, CUDA, m)
#define ATROUSOPS_CUDA_SCHEMAS(m) STABLE_TORCH_LIBRARY_FRAGMENT(atrousops, m)
#endif
