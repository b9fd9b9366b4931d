"""Readable pure-PyTorch definitions: the oracle in tests, and the last fallback."""

from atrousops.reference.flush_subnormals import flush_subnormals
from atrousops.reference.permutohedral import permutohedral_apply, permutohedral_lattice

__all__ = ["flush_subnormals", "permutohedral_apply", "permutohedral_lattice"]
