"""An emulated GPU is never taken for hardware: a device is pretended by its name."""

import pytest
import torch

import atrousops as ao
from atrousops import cli
from atrousops.dispatch import devices, probe, verdicts

EMULATED = "H100 EMULATED"


@pytest.fixture(params=[EMULATED, "NVIDIA H100 80GB HBM3"])
def name(request, monkeypatch) -> str:
    """The name of the one GPU that PyTorch sees; none of our kernels can run on it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: request.param)
    monkeypatch.setattr(probe, "verdict", lambda device: probe.Verdict(False, "pretended"))
    monkeypatch.setattr(probe, "runs_nowhere", lambda: False)
    # Without the CUDA library Triton's kernels are asked, whose verdicts name the driver.
    monkeypatch.setattr(verdicts, "why_not", lambda *asked: "pretended")
    return request.param


def test_its_name_tells(name):
    assert devices.is_emulated("cuda:0") == devices.is_emulated() == (name == EMULATED)
    assert not devices.is_emulated("cpu")


def test_without_a_gpu_none_is_emulated(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert not devices.is_emulated()


def test_info_says_so(name):
    facts = ao.info()
    assert facts["cuda"]["devices"] == [name]
    assert facts["cuda"]["emulated"] == (name == EMULATED)
    (line,) = [i for i, text in enumerate(str(facts).splitlines()) if text.startswith("CUDA")]
    assert ("no GPU is here" in str(facts).splitlines()[line + 1]) == (name == EMULATED)


@pytest.mark.parametrize("name", [EMULATED], indirect=True)
def test_bench_measures_nothing_on_it(name, tmp_path, capsys):
    assert cli.main(["bench", "--device", "cuda", "--suite", "overhead", "-o", str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "device must be hardware; got cuda, which is H100 EMULATED" in shown.err
    assert not list(tmp_path.iterdir())
