"""These tests need Triton's compiler: without it, or interpreted, they are left out, and the run says so."""

from atrousops import _library, _triton

FILES = ["test_ahead.py", "test_graphs.py", "test_measured_tiles.py"]
collect_ignore = FILES if _library.triton.problem is not None or _triton.interpreted() else []


def pytest_report_header():
    return f"triton: not compiled ahead of time: {_library.triton.problem or 'interpreted'}" if collect_ignore else []
