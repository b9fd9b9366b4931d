"""Readable pure-PyTorch definitions: the oracle in tests, and the last fallback."""

from atrousops.reference.flush_subnormals import flush_subnormals

__all__ = ["flush_subnormals"]
