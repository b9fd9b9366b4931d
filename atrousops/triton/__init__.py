"""Triton kernels of every operator, for GPUs that the compiled library does not serve.

One file an operator, from top to bottom: formula and shapes, kernel, launcher. A launcher takes the arguments of the
operator's schema. Nothing here imports triton until a kernel is asked for.
"""
