"""Triton's kernels on CPU tensors: which of the shared cases its interpreter, a millisecond an operation, has time for.

TRITON_INTERPRET=1 pytest -m triton runs them; with ATROUSOPS_TRITON_ALL=1, all.
"""

from __future__ import annotations

import os
import random
from collections import defaultdict
from typing import Any

from atrousops import _library, _triton


def problem() -> str | None:
    """Why the kernels cannot be run here, or None."""
    if _library.triton.problem is not None:
        return _library.triton.problem
    return None if _triton.interpreted() else "the kernels are interpreted under TRITON_INTERPRET=1 alone"


def selected(items: list[Any]) -> list[Any]:
    """Of each test as few cases as show every value of every parameter once, always the same ones."""
    if os.environ.get("ATROUSOPS_TRITON_ALL"):
        return items
    tests = defaultdict(list)
    for item in items:
        tests[item.nodeid.partition("[")[0]].append(item)
    kept = set()
    for cases in tests.values():
        shown: set[tuple[str, str]] = set()
        for item in random.Random(0).sample(cases, len(cases)):
            values = {(name, str(value)) for name, value in item.callspec.params.items()}
            if not values <= shown:
                shown |= values
                kept.add(item)
    return [item for item in items if item in kept]
