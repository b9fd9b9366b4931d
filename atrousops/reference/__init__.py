"""Readable pure-PyTorch definitions: the oracle in tests, and the last fallback."""

from atrousops.reference.flush_subnormals import flush_subnormals
from atrousops.reference.mean_field import mean_field
from atrousops.reference.permutohedral import permutohedral_apply, permutohedral_lattice

__all__ = ["flush_subnormals", "mean_field", "permutohedral_apply", "permutohedral_lattice"]
