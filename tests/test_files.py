import os
import stat

import pytest

from atrousops.common.files import OutputError, write_atomically


def write(data):
    def to(name):
        with open(name, "wb") as file:
            file.write(data)

    return to


def test_whole_or_as_it_was(tmp_path):
    path = tmp_path / "result.png"
    path.write_bytes(b"before")

    def full(name):
        write(b"half")(name)
        raise OSError(28, "No space left on device")

    def interrupted(name):
        write(b"half")(name)
        raise KeyboardInterrupt

    with pytest.raises(OutputError, match=r"cannot write .*result\.png: No space left on device"):
        write_atomically(path, full)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, interrupted)
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["result.png"]
    write_atomically(path, write(b"after"))
    assert path.read_bytes() == b"after"


def test_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    write_atomically(tmp_path / "ours", write(b""))
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_folders(tmp_path):
    write_atomically(tmp_path / "new" / "a", write(b"x"))
    assert (tmp_path / "new" / "a").read_bytes() == b"x"
    with pytest.raises(OutputError, match="b: "):
        write_atomically(tmp_path / "new" / "a" / "b", write(b"x"))
    # A name as long as the file system allows.
    write_atomically(tmp_path / ("n" * 255), write(b"x"))
