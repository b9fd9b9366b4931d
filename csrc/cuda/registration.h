// ATROUSOPS_CUDA_LIBRARY(m) { implement<"op", &f, "input">(m); } at the bottom of a .cu: the CUDA key of our operators;
// on the host, the CPU key of the library that tests call.
#pragma once

#include "stable/implement.h"

#if defined(ATROUSOPS_HOST_CUDA)
#define ATROUSOPS_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(atrousops_host_cuda, CPU, m)
#else
#define ATROUSOPS_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(atrousops, CUDA, m)
#endif
