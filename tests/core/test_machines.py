"""The files of dispatch/machines: complete, explained, refused where they are wrong, and read when they count."""

import itertools
import subprocess
import sys
from math import inf

import pytest
import torch
from planner_cases import conv

from atrousops.common.checks import ArgumentError
from atrousops.dispatch import devices, libraries, planner

native = libraries.planner
pytestmark = pytest.mark.skipif(native is None, reason="the compiled planner is missing")

CPUS = ("amx", "avx512", "avx2", "plain")
DTYPES = (torch.double, torch.float32, torch.bfloat16, torch.float16)


def every_device():
    for machine, dtype, last in itertools.product(CPUS, DTYPES, (False, True)):
        yield devices.cpu(machine, dtype, last, 1)
    for machine, dtype, last, tf32 in itertools.product(("h100", "mi300x"), DTYPES, (False, True), (False, True)):
        yield devices.gpu("cuda", devices.gpu_facts(machine), dtype, last, tf32, machine)


def test_every_table_is_complete_and_positive():
    # What may be none: axes, and tensor cores of a dtype.
    may_be_zero = {"skips", "weight_skips", "tensor", "wgmma", "our_gemm"}
    for device in every_device():
        own = {name for name, (_, cpu, gpu) in native.rates().items() if (cpu if device.kind == "cpu" else gpu)}
        assert device.rates.keys() == own | {"exceptions"}
        for name, rate in device.rates.items():
            if name != "exceptions":
                assert rate > 0 or (rate == 0 and name in may_be_zero), name
        for exception in device.rates["exceptions"]:
            assert 0 < exception["rate"] < inf


def test_every_file_and_name_is_explained():
    for path in devices._FOLDER.glob("*.toml"):
        file = devices.machine_file(path.stem)
        assert all(file[text] for text in ("name", "date", "measured", "guessed"))
    readme = (devices._FOLDER / "README.md").read_text()
    for name in (*native.rates(), *native.conditions()):
        assert f"`{name}`" in readme, name


def test_units_and_what_is_derived():
    # By hand from the files: GFLOP/s of a thread and GB/s; TFLOP/s of an H100, scaled by multiprocessors.
    zen4 = devices.cpu_rates("avx512", torch.float32, True)
    assert (zen4["aten"], zen4["copy"], zen4["aten_call"], zen4["skips"]) == (106e9, 30e9, 7e-6, 3)
    assert zen4["exceptions"][1] == {"of": "aten", "when": {"channels_below": 32, "bytes_apart": 4096}, "rate": 22e9}
    double = devices.cpu_rates("avx512", torch.double, True)
    assert double["aten"] == double["gemm"] == double["aten_weight_grad"] == 80e9 / 2.8
    assert (double["depthwise"], double["tails"], double["skips"], double["copy"]) == (10e9, inf, 0, 30e9)
    assert {e["of"] for e in double["exceptions"]} == {"aten_depthwise", "aten_depthwise_grad"}
    # A Zen 4 multiplies bf16 and not fp16.
    assert devices.cpu_rates("avx512", torch.float16, True) == devices.cpu_rates("avx2", torch.bfloat16, True)
    # A Xeon with AMX has none for fp16: its rates are not those of bf16.
    fp16, bf16 = (devices.cpu_rates("amx", dtype, True) for dtype in (torch.float16, torch.bfloat16))
    assert (fp16["aten_weight_grad"], bf16["aten_weight_grad"], fp16["copy"]) == (0.12e9, 90e9, 33e9)
    half_of_it = devices.gpu_rates("h100", 66, "half", True)
    assert (half_of_it["wgmma"], half_of_it["copy"], half_of_it["our_call"]) == (250e12, 1.5e12, 12e-6)
    assert devices.gpu_rates("mi300x", 66, "half", True) == half_of_it


# A condition with a limit, a problem of which it holds, and one of which it just does not hold.
CONDITIONS = {
    "dilation_above": (6, conv(64, 64, 33, 3, 7), conv(64, 64, 33, 3, 6)),
    "dilation_at_most": (6, conv(64, 64, 33, 3, 6), conv(64, 64, 33, 3, 7)),
    "padding_above": (6, conv(64, 64, 33, 3, 7), conv(64, 64, 33, 3, 6)),
    # Of weight gradients alone.
    "weight_grad_kernel_above": (3, conv(64, 64, 33, 5, 1, kind="weight_grad"), conv(64, 64, 33, 5, 1)),
    "stride_above": (2, conv(64, 64, 33, 3, 1, stride=3), conv(64, 64, 33, 3, 1, stride=2)),
    "odd_stride": (True, conv(64, 64, 33, 3, 1, stride=3), conv(64, 64, 33, 3, 1, stride=2)),
    "odd_sums": (True, conv(63, 64, 33, 3, 1), conv(64, 63, 33, 3, 1)),
    "groups_above": (4, conv(64, 64, 33, 3, 1, groups=8), conv(64, 64, 33, 3, 1, groups=4)),
    # 33 positions of a kernel on a map of 32, and on one of 33.
    "beyond_image": (True, conv(64, 64, 32, 3, 16), conv(64, 64, 33, 3, 16)),
    "row_dilation": (2, conv(64, 64, 33, 3, 2), conv(64, 64, 33, 3, 3)),
    # Five rows of 33 positions of 64 channels of 4 bytes.
    "row_bytes_above": (5 * 33 * 64 * 4 - 1, conv(64, 64, 33, 3, 2), conv(63, 64, 33, 3, 2)),
    "channels_below": (32, conv(64, 31, 33, 3, 1), conv(64, 32, 33, 3, 1)),
    "bytes_apart": (4096, conv(1024, 64, 33, 3, 1), conv(1032, 64, 33, 3, 1)),
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_an_exception_counts_where_its_condition_holds(name):
    limit, inside, outside = CONDITIONS[name]
    device = devices.cpu("plain", torch.float32, False, 1)
    for problem, holds in ((inside, True), (outside, False)):
        usual = "aten_weight_grad" if problem.kind == "weight_grad" else "aten"
        # A rate of which all else is nothing; and another condition that always holds.
        exception = {
            "of": usual,
            "when": {name: limit, "dilation_at_most": limit if "most" in name else 99},
            "rate": 1e6,
        }
        seconds = [
            planner.plan(problem, device._replace(rates=device.rates | {"exceptions": all}), 4).candidates[0].seconds
            for all in ([], [exception], [exception | {"of": "aten_pointwise"}])
        ]
        assert seconds[2] == seconds[0]
        assert seconds[1] == (pytest.approx(problem.dense_flops / 1e6, rel=1e-2) if holds else seconds[0])


def test_every_condition_has_its_case():
    assert list(CONDITIONS) == native.conditions()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the files that a test may spoil."""
    for path in devices._FOLDER.glob("*.toml"):
        (tmp_path / path.name).write_text(path.read_text())
    caches = (devices.machine_file, devices.cpu_rates, devices.gpu_rates)
    monkeypatch.setattr(devices, "_FOLDER", tmp_path)
    for cache in caches:
        cache.cache_clear()
    yield tmp_path
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("gemm_weight = 60\n", "", r"avx2.toml \[float.channels_last\]: gemm_weight must be given; got nothing"),
        (
            "gemm_weight = 60",
            "gemm_wait = 60",
            r"avx2.toml \[float.channels_last\]: gemm_wait must be one of .* unknown",
        ),
        (
            "gemm_weight = 60",
            "gemm_weight = 60\ncopy = 12",
            r"avx2.toml \[float.channels_last\]: copy must be given once",
        ),
        ("gemm_weight = 60", "gemm_weight = 60\nwgmma = 1", r"avx2.toml \[float.channels_last\]: wgmma must be one of"),
        ("row_dilation = 2", "rows = 2", r"avx2.toml \[float.channels_last\] exceptions: rows must be one of"),
        ('of = "aten",', 'of = "copy",', r"avx2.toml \[float.channels_last\] exceptions: copy must be one of"),
        ('of = "aten",', "", r"avx2.toml \[float.channels_last\] exceptions: of must be given"),
        ('"GFLOP/s"', '"GHz"', r"avx2.toml \[units\]: operations must be one of .*; got 'GHz'"),
        ("date =", "day =", "avx2.toml: day must be one of"),
    ],
)
def test_what_is_wrong_is_named(folder, old, new, message):
    text = (folder / "avx2.toml").read_text()
    assert old in text
    (folder / "avx2.toml").write_text(text.replace(old, new))
    with pytest.raises(ArgumentError, match=message):
        devices.cpu_rates("avx2", torch.float32, True)


def test_a_missing_fact_of_a_gpu_is_named(folder):
    text = (folder / "mi300x.toml").read_text()
    (folder / "mi300x.toml").write_text(text.replace("capability", "generation"))
    with pytest.raises(ArgumentError, match=r"mi300x.toml \[facts\]: generation must be one of capability, "):
        devices.gpu_facts("mi300x")


def test_nothing_is_read_before_something_is_planned():
    code = (
        "import sys, torch, atrousops; from atrousops.dispatch import devices\n"
        "assert devices.machine_file.cache_info().currsize == 0\n"
        "atrousops.functional.conv2d(torch.ones(1, 8, 32, 32), torch.ones(8, 8, 3, 3))\n"
        "assert devices.machine_file.cache_info().currsize == 1"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
