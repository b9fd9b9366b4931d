"""Optimised copies held to their models."""

import copy

import torch
from oracle import assert_close
from torch import nn

import atrousops as ao


def lively(model: nn.Module) -> nn.Module:
    """Evaluation mode, with statistics and scales that a normalisation would show if it were left out."""
    torch.manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.running_mean.normal_(0, 0.2)
            layer.running_var.uniform_(0.5, 2)
            if layer.affine:
                layer.weight.data.uniform_(0.5, 2)
                layer.bias.data.normal_(0, 0.2)
    return model.eval()


def tensors(outputs) -> list[torch.Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(outputs) if isinstance(t, torch.Tensor)]


def held(model: nn.Module, *inputs: torch.Tensor, **options) -> nn.Module:
    """The optimised model, once its outputs agree with fp64 as well as the model's own do."""
    fast = ao.optimize(model, *inputs, **options)
    assert not [note for note in ao.optimization_report(fast).notes if "undone" in note]
    with torch.no_grad():
        exact = tensors(copy.deepcopy(model).double()(*[x.double() for x in inputs]))
        for got, true, theirs in zip(tensors(fast(*inputs)), exact, tensors(model(*inputs)), strict=True):
            assert_close(got, true, theirs)
    return fast


def unfolded(model: nn.Module) -> list[str]:
    """Normalisations that still compute, by name: a constant added to their statistics shows in what they return."""
    norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    return [n for n, m in norms.items() if "folded" not in m.extra_repr()]
