"""The list of kernels that the emulated GPU need not launch: it can only become shorter."""

import launched
import pytest

EVERYTHING = ["void pool<float>(int)", "void pool<double>(int)", "void conv<float>(int)"]


@pytest.mark.parametrize(
    ("never", "patterns", "wrong"),
    [
        ([], {}, []),
        (["void conv<float>(int)"], {"void conv<*>(*)": "needs two GPUs"}, []),
        (["void conv<float>(int)"], {}, ["never launched: void conv<float>(int)"]),
        ([], {"void conv<*": "why"}, ["void conv<float>(int) was launched; narrow or remove void conv<*"]),
        (["void pool<float>(int)"], {"void pool<*": "why"}, ["void pool<double>(int) was launched; narrow"]),
        ([], {"void gone()": "why"}, ["there is no kernel void gone(); remove the line"]),
        (["void conv<float>(int)"], {"void conv<*": ""}, ["void conv<* has no reason"]),
    ],
)
def test_what_fails_a_whole_run(never, patterns, wrong):
    told = launched.problems(never, patterns, EVERYTHING)
    assert len(told) == len(wrong)
    assert all(part in line for part, line in zip(wrong, told, strict=True))


def test_launches_of_several_processes_are_added(tmp_path):
    (tmp_path / "1.tsv").write_text("_Z3fooi\t0\n_Z3bari\t2\n")
    (tmp_path / "2.tsv").write_text("_Z3fooi\t0\n_Z3bari\t1\n")
    assert launched.counts(tmp_path) == {"foo(int)": 0, "bar(int)": 3}


def test_every_line_of_the_list_has_a_reason():
    assert all(launched.listed().values())
