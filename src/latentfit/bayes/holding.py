"""One network of a trained model goes on, the rest is held."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from latentfit.data.rows import Rows
from latentfit.model.uncertain import Loss
from latentfit.training.modes import in_eval

#: rows over which statistics of batches are taken
REFERENCE_ROWS = 512


@contextmanager
def rest_held(model: nn.Module, network: nn.Module) -> Iterator[None]:
    """The network in training mode, the rest of the model without gradients and as in use; all is put back after.

    Parts that are held keep their running statistics too: post hoc they belong to the model that was given. Only the
    likelihood is as in training, for a scale that follows the residuals may not be fixed yet.
    """
    own = {id(p) for p in network.parameters()}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in own]
    with in_eval(model):
        network.train()
        if isinstance(likelihood := getattr(model, "likelihood", None), nn.Module):
            likelihood.train()
        try:
            for p in others:
                p.requires_grad_(False)
            yield
        finally:
            for p in others:
                p.requires_grad_(True)


def normalisations(network: nn.Module) -> list[_BatchNorm]:
    """The layers that keep running statistics of batches."""
    return [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def inputs_of(network: nn.Module, loss: Loss, rows: Rows, device: torch.device, random_state: int) -> list[Tensor]:
    """What the network reads of some training rows: a tensor (n, ...) for each of its arguments."""
    generator = torch.Generator().manual_seed(random_state)
    chosen = torch.randperm(len(rows), generator=generator)[:REFERENCE_ROWS]
    seen: list[Tensor] = []

    def watch(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not seen:  # what comes after the first call may be a penalty's
            seen.extend(x.detach().clone()[:REFERENCE_ROWS] for x in inputs)

    handle = network.register_forward_pre_hook(watch)
    try:
        with torch.no_grad():
            loss(rows.batch(chosen).to(device))
    finally:
        handle.remove()
    return seen


@torch.no_grad()
def refresh(network: nn.Module, inputs: list[Tensor]) -> None:
    """Set running statistics of batches to those of these inputs under the network's own weights."""
    layers = normalisations(network)
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    try:
        with in_eval(network):
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum = None  # the plain average, here of one batch
                layer.train()
            network(*inputs)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
