"""These tests need Triton's compiler: without it, or interpreted, they are left out, and the run says so."""

from atrousops.dispatch import libraries, triton_library

FILES = ["test_ahead.py", "test_graphs.py", "test_measured_tiles.py", "test_tables.py"]
collect_ignore = FILES if libraries.triton.problem is not None or triton_library.interpreted() else []


def pytest_report_header():
    return f"triton: not compiled ahead of time: {libraries.triton.problem or 'interpreted'}" if collect_ignore else []
