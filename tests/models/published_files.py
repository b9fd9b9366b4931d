"""Files as if they had been published, and what their networks are given."""

import dataclasses

import numpy as np
import torch
from safetensors.torch import save_file

from atrousops import models


def loaded(monkeypatch, tmp_path, name, state, ending=".pth", **arguments):
    """The network of a checkpoint, narrower or shallower by `arguments`, from a file with that state."""
    entry = models.PUBLISHED[name]
    smaller = dataclasses.replace(entry, arguments={**entry.arguments, **arguments}, sha256="")
    monkeypatch.setitem(models.PUBLISHED, name, smaller)
    path = tmp_path / f"file{ending}"
    if ending == ".npz":
        np.savez(path, **{key: value.numpy() for key, value in state.items()})
    elif ending == ".safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    else:
        torch.save(state, path)
    return models.load_published(name, path)


def keep_only(monkeypatch, *names):
    """Leaves these checkpoints alone published. What is undone has the order of before, in which messages name them."""
    kept = {name: models.PUBLISHED[name] for name in names}
    for name in reversed([*models.PUBLISHED]):
        monkeypatch.delitem(models.PUBLISHED, name)
    for name, entry in kept.items():
        monkeypatch.setitem(models.PUBLISHED, name, entry)


def seen(network, rgb):
    """What a network is given of an image in 0..1."""
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (network.info.mean, network.info.std))
    return (rgb - mean) / std


def assert_same(ours, theirs):
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
