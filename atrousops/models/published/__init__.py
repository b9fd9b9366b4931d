"""Checkpoints that others published, as weights of ours: which network they are of, and what it expects and answers.

A file each release: its names and shapes, as tables, and what its images were normalised with.
"""

from atrousops.models.published.entry import Published
from atrousops.models.published.loading import PUBLISHED, load_published

__all__ = ["PUBLISHED", "Published", "load_published"]
