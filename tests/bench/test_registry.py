"""The rows: all can be made, each has a reason, no two are one."""

from collections import Counter

import pytest
import torch

from atrousops.bench import registry
from atrousops.bench.registry import DIRECTIONS, DTYPES, LAYOUTS, SUITES, Selection
from atrousops.common.checks import ArgumentError


@pytest.mark.parametrize("suite", SUITES)
def test_rows(suite):
    rows = registry.suite_rows(suite)
    assert Counter(row.key for row in rows).most_common(1)[0][1] == 1
    for row in rows:
        assert row.suite == suite
        assert len(row.reason) > 5, row.key
        assert (row.dtype in DTYPES, row.layout in LAYOUTS, row.direction in DIRECTIONS) == (True,) * 3
    assert any(row.quick for row in rows)
    assert registry.suite_title(suite).endswith(".")


@pytest.mark.parametrize("suite", [suite for suite in SUITES if suite not in ("aspp", "crf", "networks", "scaling")])
def test_rows_can_be_prepared(suite):
    """On the meta device, where tensors have shapes only. Modules, CRFs and threads are in test_modules."""
    rows = {(row.case, row.direction): row for row in registry.suite_rows(suite)}
    for row in rows.values():
        with torch.device("meta"):
            prepared = row.prepared(torch.device("meta"))
        assert prepared.floor.bytes > 0, row.key
        assert 0 < prepared.floor.live_share <= 1
        if prepared.gemm is not None:
            m, n, k = prepared.gemm
            assert prepared.floor.flops == 2 * m * n * k, row.key


def test_the_same_values_in_every_layout():
    nchw, nhwc = (
        Selection(match="^overhead/conv2d 32->32.*/forward", layouts=(layout,)).rows()[0] for layout in LAYOUTS
    )
    a, b = (row.prepared(torch.device("cpu")).ours()() for row in (nchw, nhwc))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-3)
    assert b.is_contiguous(memory_format=torch.channels_last)


def test_selection():
    assert {row.suite for row in Selection(suites=("roi", "crf")).rows()} == {"roi", "crf"}
    assert all("rate 18" in row.case for row in Selection(match="rate 18").rows())
    rows = Selection(quick=True, dtypes=("bf16",), layouts=("nhwc",), directions=("forward",)).rows()
    assert {(row.dtype, row.layout, row.direction, row.quick) for row in rows} == {("bf16", "nhwc", "forward", True)}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"suites": ("rio",)}, "suite must be one of deeplab"),
        ({"dtypes": ("float32",)}, "dtype must be one of fp64"),
        ({"layouts": ("chwn",)}, "layout must be one of nchw"),
        ({"directions": ("backwards",)}, "pass must be one of forward"),
        ({"match": "("}, "match must be a regular expression"),
        ({"match": "no such row"}, "--list"),
    ],
)
def test_bad_selection(fields, message):
    with pytest.raises(ArgumentError, match=message):
        Selection(**fields).rows()
