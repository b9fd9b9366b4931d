"""Public functions: argument checks, fake kernels, autograd, autocast, and the choice of a backend."""

from atrousops.ops.flush_subnormals import flush_subnormals

__all__ = ["flush_subnormals"]
