"""The command line on device="cuda", to its end: what it launches, and what it writes against the CPU's."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from bright import write_photos
from emulated_cases import launched
from people import write_people, write_recipe
from PIL import Image

import atrousops as ao
from atrousops import cli
from atrousops.bench import machine, registry, run
from atrousops.bench.machine import Ceilings
from atrousops.bench.operators import operator
from atrousops.bench.results import Report

pytestmark = [pytest.mark.gpu, pytest.mark.skipif("ATROUSOPS_EMULATED" not in os.environ, reason="of the emulation")]


def launched_by(*words: object) -> set[str]:
    """Runs `atrousops words`, and tells its kernels."""
    codes: list[int] = []
    found = launched(lambda: codes.append(cli.main([str(word) for word in words])))
    assert codes == [0]
    return found


def assert_among(found: set[str], *kernels: str) -> None:
    for kernel in kernels:
        assert any(re.search(kernel, name) for name in found), (kernel, sorted(found))


def masks(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(file)) for file in sorted(folder.glob("*_mask.png"))]


def test_train_and_segment(tmp_path):
    """Two steps of a small U-Net, its scores; then two pictures by its weights, with the dense CRF."""
    model = {"name": "unet", "arguments": {"num_classes": 2, "width": 2, "padding": "zeros", "batch_norm": True}}
    schedule = {"steps": 2, "warmup": 0, "cooldown": 0}
    recipe = write_recipe(tmp_path, device="cuda", batch=1, model=model, schedule=schedule, validate_every=2)
    data = write_people(tmp_path, 1)
    with ao.backend("cuda"):
        found = launched_by("train", recipe, "--output", tmp_path / "run", "--data", data)
    assert_among(found, "conv_simt_kernel", "conv_mma_weight_kernel", "max_pool_kernel")
    weights = tmp_path / "run" / "weights.safetensors"
    with ao.backend("cuda"):
        assert_among(launched_by("evaluate", recipe, "--weights", weights, "--data", data), "conv_simt_kernel")
    words = ("segment", *write_photos(tmp_path / "photos", 2), "--weights", weights, "--size", 0)
    with ao.backend("cuda"):
        found = launched_by(*words, "--device", "cuda", "-o", tmp_path / "plain")
    assert_among(found, "conv_simt_kernel", "max_pool_kernel")
    # The CRF is on the CPU.
    launched_by(*words, "--crf", "--device", "cuda", "-o", tmp_path / "cuda")
    launched_by(*words, "--crf", "--device", "cpu", "-o", tmp_path / "cpu")
    ours, expected = masks(tmp_path / "cuda"), masks(tmp_path / "cpu")
    assert [mask.shape for mask in ours] == [(10, 20)] * 2
    assert all(np.array_equal(a, b) for a, b in zip(ours, expected, strict=True))


def test_a_row_of_the_benchmark(tmp_path, monkeypatch, capsys):
    """Down to its table, which nobody sees: the times are no GPU's, and the command refuses to measure them."""
    monkeypatch.setattr(run, "check_hardware", lambda device: None)
    monkeypatch.setattr(run, "suite_title", lambda suite: "Small rows.")
    monkeypatch.setattr(machine, "ceilings", lambda device, dtypes: Ceilings(1e10, dict.fromkeys(dtypes, 1e11)))
    tiny = operator("conv2d", lambda: (torch.randn(1, 3, 6, 6), torch.randn(4, 3, 3, 3)), padding=2, dilation=2)
    row = registry.Row("small", "right", "for a test", "fp32", "nchw", "forward", tiny)
    monkeypatch.setattr(registry.Selection, "rows", lambda self: [row])
    with ao.backend("cuda"):
        words = ("bench", "--device", "cuda", "--repeats", 1, "--budget", 0, "-o", tmp_path, "--name", "a")
        assert_among(launched_by(*words), "conv_simt_kernel")
    assert "1/1 right " in capsys.readouterr().out
    (file,) = tmp_path.glob("*emulated/a.json")
    (result,) = Report.load(file).results
    assert not result.error
    assert not result.wrong
    assert {"dispatched", "own kernel"} <= result.timings.keys()
    assert result.memory["dispatched"] > 0
