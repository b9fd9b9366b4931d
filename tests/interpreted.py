"""Triton's kernels on CPU tensors: which of the shared cases its interpreter, a millisecond an operation, has time for.

TRITON_INTERPRET=1 pytest -m triton runs them; with ATROUSOPS_TRITON_ALL=1, all.
"""

from __future__ import annotations

import inspect
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


# Tests that show every value of every parameter; of all others at most this many cases are run.
THOROUGH = ("test_our_kernels_match_pytorch", "test_values_and_indices_are_pytorchs", "test_the_last_in_order_stays")
MOST = 3
# Of these shapes the interpreter takes minutes; others have phases too.
SLOW = ("k16 s8: 64 phases of four taps", "bilinear: one channel a group")


def selected(items: list[Any]) -> list[Any]:
    """Of each test the first cases, in an order drawn once, that show a value of a parameter not shown before.

    Tests of drawn arguments call too often, and so does gradcheck: the others compare gradients with PyTorch's.
    """
    if os.environ.get("ATROUSOPS_TRITON_ALL"):
        return items
    tests = defaultdict(list)
    for item in items:
        if not getattr(item.obj, "is_hypothesis_test", False) and "gradcheck" not in inspect.getsource(item.function):
            tests[item.nodeid.partition("[")[0]].append(item)
    kept = set()
    for test, cases in tests.items():
        shown: set[tuple[str, str]] = set()
        most = len(cases) if test.endswith(THOROUGH) else MOST
        for item in random.Random(0).sample(cases, len(cases)):
            values = {(name, str(value)) for name, value in item.callspec.params.items()}
            slow = any(value in SLOW for _, value in values)
            if not values <= shown and most > 0 and not slow:
                shown |= values
                kept.add(item)
                most -= 1
    return [item for item in items if item in kept]
