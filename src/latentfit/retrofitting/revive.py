"""Dead units of a trained VAE, started anew where the encoder gives them and where the decoder reads them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latentfit.data.batch import Batch
from latentfit.data.rows import Prepare
from latentfit.evaluation.codes import encode_rows
from latentfit.evaluation.collapse import active_units
from latentfit.model import VAEModule
from latentfit.posteriors import DiagonalPosterior
from latentfit.training import isolated_rng

#: rows by which dead units are known and new ones are scaled
ROWS = 2_000
#: new decoder columns over the living ones': at full size they disturb a decoder that is right, at 0 the encoder has no
#: gradient
COLUMNS = 0.1
#: a new unit's standard deviation of q(z given x), where no unit is alive to take it from
STD = 0.5


@dataclass(frozen=True)
class Revival:
    """What was done for units that carry nothing.

    Attributes:
        dead: how many there were.
        done: how many were started anew.
        reason: why not, where they were not.
    """

    dead: int
    done: int
    reason: str


@torch.no_grad()
def revive(vae: VAEModule, rows: Batch, *, prepare: Prepare | None = None, random_state: int = 0) -> Revival:
    r"""Start units with a constant mean anew, in place, at the scale of those that live.

    The encoder's last linear layer gets new rows: means are random projections of its features, scaled to
    E_x mean^2 + std^2 = 1 with the median std of the living, the log-variances are constant. The decoder's first
    linear layers get new columns, a tenth as large as those of the living. Layers are found by what they read and
    give, not by name; a model whose layers do not give q's parameters linearly is left alone, and that is said.

    Args:
        vae: changed in place.
        rows: training rows.
        prepare: applied to them first.
        random_state: seed of the new weights.
    """
    some = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(random_state))[:ROWS]]
    with isolated_rng(random_state, vae.device):
        some = (some if prepare is None else prepare(some)).to(vae.device)
        codes = encode_rows(vae, some, random_state=random_state)
        alive = torch.as_tensor(active_units(codes).active, device=vae.device)
        dead = int((~alive).sum())
        if not dead:
            return Revival(0, 0, "")
        if not isinstance(vae.posterior, DiagonalPosterior) or len(vae.event_shape) > 1:
            return Revival(dead, 0, "only units of a diagonal posterior over flat latents can be started anew")
        z = codes.mean.to(vae.device)
        heads, readers = _heads(vae, some), _readers(vae, z, some.context)
        if heads is None or not readers:
            return Revival(dead, 0, "no linear layer gives q's means and log-variances, or none reads z")
        std = float(codes.std.to(alive.device)[:, alive].median()) if alive.any() else STD
        _new_rows(heads, ~alive, min(std, 0.9))
        for layer in readers:
            _new_columns(layer, alive, z.shape[1])
    return Revival(dead, dead, "")


@dataclass(frozen=True)
class _Head:
    """Rows of a linear layer that give means or log-variances."""

    layer: Any
    offset: int
    features: Tensor


def _heads(vae: VAEModule, rows: Batch) -> tuple[_Head, _Head] | None:
    """The layers that give the means and the log-variances: one layer with 2 D rows, or two with D each."""
    dim = vae.event_shape.numel()
    with _recorded(vae.encoder) as calls:
        q = vae.encode(rows)
    mean, spread = q.moments()
    found: list[_Head | None] = [None, None]
    for layer, given, out in calls:
        for offset in range(0, out.shape[-1] - dim + 1, dim):
            part = out[..., offset : offset + dim]
            if part.shape != mean.shape:
                continue
            of_mean = torch.allclose(part, mean, atol=1e-5)
            of_spread = torch.allclose(part.clamp(-20, 10), spread.log(), atol=1e-4)
            if of_mean and (found[0] is None or not of_spread):  # of N(0, 1) both are 0, and means come first
                found[0] = _Head(layer, offset, given)
            elif of_spread:
                found[1] = _Head(layer, offset, given)
    return None if found[0] is None or found[1] is None else (found[0], found[1])


def _readers(vae: VAEModule, z: Tensor, context: Tensor | None) -> list[Any]:
    """The layers whose input begins with z."""
    with _recorded(vae.decoder) as calls:
        vae.decode(z, context)
    dim = z.shape[1]
    return [
        layer
        for layer, given, _ in calls
        if given.dim() == 2 and len(given) == len(z) and torch.equal(given[:, :dim], z)
    ]


@contextmanager
def _recorded(network: nn.Module) -> Iterator[list[tuple[Any, Tensor, Tensor]]]:
    """(layer, input, output) of every call of a layer with a weight matrix."""
    calls: list[tuple[Any, Tensor, Tensor]] = []

    def hook(layer: nn.Module, given: Any, out: Any) -> None:
        calls.append((layer, given[0], out))

    linear = [m for m in network.modules() if isinstance(w := getattr(m, "weight", None), Tensor) and w.dim() == 2]
    handles = [m.register_forward_hook(hook) for m in linear]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _new_rows(heads: tuple[_Head, _Head], dead: Tensor, std: float) -> None:
    mean, log_variance = heads
    units = dead.nonzero().squeeze(-1)
    centred = mean.features - mean.features.mean(0)
    new = torch.randn(len(units), centred.shape[1], dtype=centred.dtype).to(centred)
    size = (centred @ new.T).std(0).clamp_min(1e-6)  # of the means over x
    new = new * ((1 - std**2) ** 0.5 / size).unsqueeze(-1)
    mean.layer.weight[units + mean.offset] = new
    log_variance.layer.weight[units + log_variance.offset] = 0.0
    if mean.layer.bias is not None:
        mean.layer.bias[units + mean.offset] = -(new @ mean.features.mean(0))
    if log_variance.layer.bias is not None:
        log_variance.layer.bias[units + log_variance.offset] = 2 * torch.tensor(std).log().item()


def _new_columns(layer: Any, alive: Tensor, dim: int) -> None:
    weight = layer.weight[:, :dim]
    living = weight[:, alive]
    size = living.square().mean().sqrt() if living.numel() else torch.tensor(dim**-0.5)
    weight[:, ~alive] = COLUMNS * size * torch.randn_like(weight[:, ~alive])
