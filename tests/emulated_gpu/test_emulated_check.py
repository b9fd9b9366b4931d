"""A step of tests/gpu_check.py on an emulated device: begun, run, counted and filed as it would be on a GPU."""

import json
import os

import gpu_check
import gpu_steps
import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif("ATROUSOPS_EMULATED" not in os.environ, reason="of the emulation")]


def test_a_step_is_filed_as_emulated(tmp_path):
    """The whole takes a quarter of an hour: tests/emulated_gpu/run.py tests/gpu_check.py --few 2."""
    (step,) = [step for step in gpu_steps.file_steps(tmp_path, True, few=1) if step.name == "test_oracle"]
    run = gpu_check.Run(tmp_path, 400, False, gpu_check.EMULATED, tmp_path / "all.tar.gz")
    assert run.stages([step], 1)
    filed = json.loads((tmp_path / "summary.json").read_text())
    assert filed["note"] == gpu_check.EMULATED
    assert [each["figures"] for each in filed["steps"]] == ["1 tests, 0 failures, 0 errors, 0 skipped"]
    log = (tmp_path / "test_oracle.log").read_text()
    assert log.startswith(gpu_check.EMULATED)
    assert f"gpu: EMULATED ({torch.cuda.get_device_name()}): no hardware ran a kernel" in log
