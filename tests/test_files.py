import multiprocessing
import os
import resource
import signal
import stat
import types

import pytest
import torch

from atrousops import models
from atrousops.common.checks import ArgumentError
from atrousops.common.files import OutputError, alone, write_atomically
from atrousops.engine import log, train
from atrousops.engine.distributed import Processes
from atrousops.engine.segment import Job, results_of


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


@pytest.fixture
def full_disk():
    """Files of this process end at 4096 bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_told_whatever_a_library_makes_of_it(tmp_path, full_disk):
    """torch.save raises a RuntimeError of its own then, safetensors an error that is no OSError."""
    network = torch.nn.Linear(64, 64)
    trainer = types.SimpleNamespace(step=1, seconds=0.0, model=network, average=network, optimiser=network)
    trainer.train_set = types.SimpleNamespace(classes=("a",))
    info = models.Info("enet", {}, ("a",), (0.5,) * 3, (0.2,) * 3, 64)
    with pytest.raises(OutputError, match=r"^cannot write .*checkpoint\.pt: File too large"):
        train.Trainer.save(trainer, tmp_path / "checkpoint.pt")
    with pytest.raises(OutputError, match=r"^cannot write .*weights\.safetensors: File too large"):
        models.save(network, tmp_path / "weights.safetensors", info)
    assert os.listdir(tmp_path) == []


def test_tensorboard_on_a_full_disk(tmp_path):
    """Its thread raises at a later call, and names no file."""
    board = log.Board(tmp_path, 0)

    def full(*_):
        raise OSError(28, "No space left on device")

    board._writer = types.SimpleNamespace(add_scalar=full, close=full)
    for call in (board.close, lambda: board.write(1, {"loss": 0.0})):
        with pytest.raises(OutputError, match=f"cannot write {tmp_path}: No space left on device"):
            call()


def test_a_folder_of_one_process_alone(tmp_path):
    """Until it is done; processes that it forked meanwhile, as DataLoader's, hold nothing."""
    context = multiprocessing.get_context("fork")
    with alone(tmp_path / "new", "train", "into which another one trains"):
        ready, go_on = context.Event(), context.Event()
        child = context.Process(target=lambda: (ready.set(), go_on.wait(60)))
        child.start()
        assert ready.wait(60)
        said = (
            r"train: output must be a folder of this process alone; got .*new, into which another one trains\. .*--out"
        )
        with (
            pytest.raises(ArgumentError, match=said),
            alone(tmp_path / "new", "train", "into which another one trains"),
        ):
            pass
    with alone(tmp_path / "new", "train", ""):
        go_on.set()
        child.join()
    assert child.exitcode == 0
    (tmp_path / "plain").touch()
    with pytest.raises(OutputError, match="plain: File exists"), alone(tmp_path / "plain", "train", ""):
        pass


def killed_while_writing(path):
    def die(name):
        write(b"half")(name)
        os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=write_atomically, args=(path, die))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_what_a_killed_process_left_is_removed_by_the_next_one(tmp_path):
    """That of the results it may write itself; a user's file of such a name has other permissions."""
    folder, pictures = tmp_path / "run", tmp_path / "run" / "pictures"
    recipe = types.SimpleNamespace(pictures_every=2, schedule=types.SimpleNamespace(last=4))
    kept = ["another.pt", ".checkpoint.pt.original", ".checkpoint.pt.privat"]
    for name in ("checkpoint.pt", "weights.safetensors", "val.csv", "curves.png", "another.pt"):
        killed_while_writing(folder / name)
    killed_while_writing(pictures / "0000004.png")
    (folder / kept[1]).touch()
    (folder / kept[2]).touch(0o600)
    (folder / ".checkpoint.pt.symlink_").symlink_to(folder / kept[2])
    assert len(os.listdir(folder)) == 9
    assert len(os.listdir(pictures)) == 1
    with alone(folder, "train", ""), pytest.raises(ArgumentError), train._only(folder, Processes(), recipe):
        pass
    assert len(os.listdir(pictures)) == 1
    with train._only(folder, Processes(), recipe):
        pass
    assert os.listdir(pictures) == []
    left = sorted(name[:-8] if name.startswith(".another") else name for name in os.listdir(folder))
    assert left == [".another.pt.", kept[1], kept[2], ".checkpoint.pt.symlink_", "pictures"]


def test_results_of_segment_left_by_a_killed_process_are_removed(tmp_path):
    job = Job(tmp_path / "photo.jpg", "a photo with a name of more than forty characters")
    for name in ("classes.csv", f"{job.name}_mask.png", f"{job.name}_overlay.tif", "other_mask.png"):
        killed_while_writing(tmp_path / name)
    with alone(tmp_path, "segment", "", results_of([job], tmp_path)):
        (left,) = os.listdir(tmp_path)
    assert left.startswith(".other_mask.png.")


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    first, second = tmp_path / "first", tmp_path / "second"
    second.mkdir()
    killed_while_writing(second / "log.csv")
    listed = os.scandir

    def scandir(folder):
        if folder == first:
            raise PermissionError(13, "Permission denied")
        return listed(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    with (
        pytest.warns(UserWarning, match=r"left in .*first stays there \(Permission denied\): remove .* \.log\.csv\."),
        alone(first, "train", "", [first / "log.csv", second / "log.csv", tmp_path / "missing" / "log.csv"]),
    ):
        assert list(second.iterdir()) == []


def test_nothing_is_removed_where_folders_cannot_be_locked(tmp_path, monkeypatch):
    """Another process may be writing there."""
    import fcntl

    killed_while_writing(tmp_path / "log.csv")

    def flock(handle, how):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    with alone(tmp_path, "train", "", [tmp_path / "log.csv"]):
        assert len(list(tmp_path.iterdir())) == 1
