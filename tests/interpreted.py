"""Triton's kernels on CPU tensors: which of the shared cases its interpreter, a millisecond an operation, has time for.

TRITON_INTERPRET=1 pytest -m triton runs them; with ATROUSOPS_TRITON_ALL=1, all.
"""

from __future__ import annotations

import inspect
import os
import random
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy

from atrousops.dispatch import libraries, triton_library


def problem() -> str | None:
    """Why the kernels cannot be run here, or None."""
    if libraries.triton.problem is not None:
        return libraries.triton.problem
    if not triton_library.interpreted():
        return "the kernels are interpreted under TRITON_INTERPRET=1 alone"
    import triton

    return too_new(triton.__version__, numpy.__version__)


def too_new(of_triton: str, of_numpy: str) -> str | None:
    """Triton 3.6 (torch 2.10) makes Python's numbers from arrays of one element, which NumPy refuses since 2.4."""
    parts = lambda text: tuple(int(part) for part in re.findall(r"\d+", text)[:2])  # noqa: E731
    if parts(of_triton) >= (3, 7) or parts(of_numpy) < (2, 4):
        return None
    return f"the interpreter of Triton {of_triton} fails under NumPy {of_numpy}: pip install 'numpy<2.4'"


# Tests that show every value of every parameter; of all others at most this many cases are run.
THOROUGH = (
    "test_our_kernels_match_pytorch",
    "test_values_and_indices_are_pytorchs",
    "test_the_last_in_order_stays",
    "test_in_the_launch_of_triton",
    "test_derivatives_of_triton",
    "test_opcheck",
    "test_results_can_be_changed_in_place",
)
MOST = 3
FLOATING = ("float64", "float32", "bfloat16", "float16")
OPERATORS = ("conv", "max_pool", "max_unpool", "roi_align", "roi_pool", "permutohedral")
# Of these shapes the interpreter takes minutes; others have phases too.
SLOW = ("k16 s8: 64 phases of four taps", "bilinear: one channel a group")
# A training of fifteen steps; the gradients it follows are compared by other tests.
TRAINING = ("test_crf_as_rnn_learns",)


def selected(items: list[Any]) -> list[Any]:
    """Of each test the first cases, in an order drawn once, that show a value of a parameter not shown before.

    Tests of drawn arguments call too often, and so does gradcheck: the others compare gradients with PyTorch's, and
    tests/triton_kernels/test_derivatives.py is gradcheck's fast mode.
    """
    if os.environ.get("ATROUSOPS_TRITON_ALL"):
        return items
    tests = defaultdict(list)
    for item in items:
        name = item.nodeid.partition("[")[0]
        often = getattr(item.obj, "is_hypothesis_test", False) or "gradcheck" in inspect.getsource(item.function)
        if name.endswith(THOROUGH) or not (often or name.endswith(TRAINING)):
            tests[name].append(item)
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


# Kernels with the dtype of their first pointer.
_launched: set[tuple[str, str]] = set()


def watch() -> None:
    """From here on, every launch counts."""
    from atrousops.triton import _common

    wrap = _common.wrap_triton

    def counting(kernel: Any) -> Any:
        class Counted:
            def __getitem__(self, grid: tuple[int, ...]) -> Any:
                def start(*args: Any, **meta: Any) -> Any:
                    _launched.add((kernel.fn.__name__, str(args[0].dtype).removeprefix("torch.")))
                    return wrap(kernel)[grid](*args, **meta)

                return start

        return Counted()

    _common.wrap_triton = counting


def launched() -> list[tuple[str, str]]:
    """What this process, and workers that `receive` heard of, have launched."""
    return sorted(_launched)


def receive(pairs: list[tuple[str, str]]) -> None:
    """What a worker of pytest-xdist has launched."""
    _launched.update(map(tuple, pairs))  # type: ignore[arg-type]


def never_launched() -> list[str]:
    """Kernels that ran in no dtype, and floating dtypes in which no convolution did."""
    folder = Path(triton_library.__file__).parent / "triton"
    names = [n for file in folder.glob("*.py") for n in re.findall(r"(?m)^@jit\ndef (\w+)\(", file.read_text())]
    ran = {name for name, _ in _launched}
    return [n for n in sorted(names) if n not in ran] + [d for d in FLOATING if ("conv_kernel", d) not in _launched]


def is_whole(config: Any, items: list[Any]) -> bool:
    """Whether the draw has all operators' test files in it, and no -k takes cases out of them."""
    files = {item.path.name for item in items}
    return not config.getoption("keyword") and {f"test_{operator}.py" for operator in OPERATORS} <= files
