// ATROUSOPS_CUDA_LIBRARY(m) { m.impl("op", TORCH_BOX(&f)); } at the bottom of a .cu: the CUDA key of our operators; on
// the host, the CPU key of the library that tests call.
#pragma once

#include <torch/csrc/stable/library.h>

#if defined(ATROUSOPS_HOST_CUDA)
#define ATROUSOPS_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(atrousops_host_cuda, CPU, m)
#else
#define ATROUSOPS_CUDA_LIBRARY(m) STABLE_TORCH_LIBRARY_IMPL(atrousops, CUDA, m)
#endif
