"""Checkpoints published by others, converted to our networks, with their inputs and classes.

One file per release, with tables of names and shapes, and the normalisation of images.
"""

from atrousops.models.published.entry import Published
from atrousops.models.published.loading import PUBLISHED, load_published

__all__ = ["PUBLISHED", "Published", "load_published"]
