"""Bijections one after the other, with one bound on their joint scale."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from latentfit.errors import InputError
from latentfit.flows.bijection import Bijection
from latentfit.flows.coupling import AffineCoupling, SplineCoupling
from latentfit.flows.mixing import LUMixing, Rotation


class Sequence(Bijection):
    r"""f = f_T o ... o f_1 with log |det| the sum, and **the sum of the layers' log-scale bounds bounded**.

    A bound per layer is not enough: six layers of +-6.9 allow a factor e^41, and off the data's support
    float32 is then lost. Where the layers' own bounds b_t add up to more than `max_log_scale` = B, all are
    reduced to b_t B / sum b. Hence |log |det df/dz|| <= D B at every z, whatever is learned (whitening and
    actnorm, which take their scale from data, are not counted). Layers that mix coordinates can still
    stretch by their off-diagonal entries; those do not depend on z.

    Args:
        layers: bijections with the same number of features, applied in this order from z to u.
        max_log_scale: B, in nats.

    Example:
        >>> flow = Sequence([AffineCoupling(2), LUMixing(2), AffineCoupling(2, flip=True)], max_log_scale=3.0)
        >>> [layer.max_log_scale for layer in flow.layers]
        [1.0, 1.0, 1.0]
    """

    def __init__(self, layers: Iterable[Bijection], max_log_scale: float = 12.0) -> None:
        layers = list(layers)
        if not layers or len({layer.features for layer in layers}) > 1:
            got = [layer.features for layer in layers]
            raise InputError(f"Sequence needs at least one layer, all with the same features; got features {got}.")
        super().__init__(layers[0].features)
        total = sum(layer.max_log_scale for layer in layers)
        if total > max_log_scale:
            for layer in layers:
                layer.max_log_scale *= max_log_scale / total
        self.max_log_scale = min(total, max_log_scale)
        self.layers = nn.ModuleList(layers)

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        first, *others = self.layers
        z, total = first(z, context)
        for layer in others:
            z, log_det = layer(z, context)
            total = total + log_det
        return z, total

    def inverse(self, u: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total = u.new_zeros(u.shape[:-1])
        for layer in reversed(self.layers):
            u, log_det = layer.inverse(u, context)  # type: ignore[operator]
            total = total + log_det
        return u, total

    @torch.no_grad()
    def initialise(self, z: Tensor, context: Tensor | None = None) -> None:
        for layer in self.layers:
            layer.initialise(z, context)  # type: ignore[operator]
            z, _ = layer(z, context)

    def reset_parameters(self) -> None:
        for layer in self.layers:
            layer.reset_parameters()  # type: ignore[operator]


def coupling_flow(
    features: int,
    transforms: int = 8,
    hidden_features: tuple[int, ...] = (128, 128),
    context_features: int = 0,
    max_log_scale: float = 12.0,
    mixing: Literal["rotation", "lu"] = "rotation",
) -> Sequence:
    """[affine coupling, mixing] x `transforms`, the halves taking turns; starts volume preserving.

    Fixed rotations cost one matrix product and beat learned LU factors that start as permutations
    (`benchmarks/flows_quality.py`). They are the same in every process and for every seed.

    Args:
        features: D.
        transforms: number of couplings, each one network call in either direction.
        hidden_features: widths of each network's hidden layers.
        context_features: width of the context, 0 for none.
        max_log_scale: bound on the total log-scale, in nats (see `Sequence`).
        mixing: what lets every coordinate meet every other.
    """
    layers: list[Bijection] = []
    for t in range(_at_least_one(transforms)):
        layers.append(AffineCoupling(features, hidden_features, context_features, flip=t % 2 == 1))
        if mixing == "lu":
            order = torch.randperm(features, generator=torch.Generator().manual_seed(t)) if features > 2 else None
            layers.append(LUMixing(features, order, max_log_scale=0.5))
        elif t + 1 < transforms:  # the base cannot tell what is rotated last
            layers += _rotation(features, t)
    return Sequence(layers, max_log_scale)


def spline_flow(
    features: int,
    transforms: int = 6,
    hidden_features: tuple[int, ...] = (128, 128),
    context_features: int = 0,
    bins: int = 8,
    box: float = 5.0,
) -> Sequence:
    """[spline coupling, rotation] x `transforms`, the halves taking turns; starts volume preserving.

    Args:
        features: D.
        transforms: number of couplings, each one network call in either direction.
        hidden_features: widths of each network's hidden layers.
        context_features: width of the context, 0 for none.
        bins: of each spline.
        box: half the width of the splines' range.
    """
    layers: list[Bijection] = []
    for t in range(_at_least_one(transforms)):
        layers.append(SplineCoupling(features, hidden_features, context_features, t % 2 == 1, bins, box))
        if t + 1 < transforms:
            layers += _rotation(features, t)
    return Sequence(layers)


@torch.no_grad()
def outside_box(flow: Sequence, z: Tensor, context: Tensor | None = None) -> float:
    """Share of the coordinates of z (..., D) that a spline of the flow leaves as they are, in the worst layer."""
    worst = 0.0
    for layer in flow.layers:
        if isinstance(layer, SplineCoupling):
            worst = max(worst, (z.abs() > layer.box).double().mean().item())
        z, _ = layer(z, context)
    return worst


def _at_least_one(transforms: int) -> int:
    if transforms < 1:
        raise InputError(f"transforms must be at least 1, got {transforms}.")
    return transforms


def _rotation(features: int, t: int) -> list[Bijection]:
    """The t-th rotation; of two coordinates none, since halves that take turns mix all there is."""
    return [Rotation(features, random_state=t)] if features > 2 else []
