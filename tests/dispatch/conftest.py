"""A machine with GPUs that are made up, whose verdicts go to a folder of the test's own."""

import pytest
from test_probe import Machine, forget

from atrousops.dispatch import choice, verdicts


class ChangingMachine(Machine):
    """A machine whose driver and libraries a test can change."""

    def __init__(self, monkeypatch):
        super().__init__(monkeypatch)
        self.release, self.library = "580.65.06, CUDA 13.0", "0123456789abcdef"
        monkeypatch.setattr(verdicts, "_driver", lambda gpu: self.release)
        monkeypatch.setattr(verdicts, "_digest_of", lambda files: self.library)

    def restarted(self):
        """As in a new process."""
        verdicts.forget()
        choice.forget()


@pytest.fixture
def machine(monkeypatch, tmp_path):
    monkeypatch.setenv("ATROUSOPS_PLANS", str(tmp_path))
    forget()
    machine = ChangingMachine(monkeypatch)
    machine.restarted()
    yield machine
    machine.restarted()
    forget()
