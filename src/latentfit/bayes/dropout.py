"""Monte Carlo dropout: masks of units as a distribution over a network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from latentfit.bayes.layers import CONVOLUTIONS, called_layers_of, layers_of, weights_of, with_weights
from latentfit.errors import InputError
from latentfit.model.uncertain import UncertainNetwork


class MCDropout(UncertainNetwork):
    r"""Hidden units switched off at random, in training and in every draw.

        h_j <- m_j h_j / (1 - rate),   m_j ~ Bernoulli(1 - rate),   loss + (1 - rate) / (2 s^2) sum_i w_i^2 / n_train

    Masks lie on what enters each dense or convolutional layer but the first (whole channels there), so the code itself
    is never masked. In training every row has masks of its own; a draw is one set of masks for all rows, folded into
    the weights: an ordinary network. Eval mode is the network without masks.

    The regulariser is weight decay. It is often read as a KL toward N(0, s^2) weights, but the distribution it would
    belong to has point masses, and its KL is infinite: it is no bound, and enters none.

    Args:
        network: the network.
        rate: chance that a unit is off.
        prior_scale: s; None: no decay.

    Raises:
        InputError: a rate outside [0, 1), a scale that is not positive.
        CapabilityError: a network without dense or convolutional layers.

    Sources: Gal and Ghahramani 2016 (arXiv 1506.02142); on the KL: Hron, Matthews and Ghahramani 2018 (arXiv
    1807.01969).
    """

    def __init__(self, network: nn.Module, rate: float = 0.1, prior_scale: float | None = 1.0) -> None:
        super().__init__(network)
        if not 0 <= rate < 1:
            raise InputError(f"MCDropout: rate must be in [0, 1), got {rate!r}.")
        if prior_scale is not None and not prior_scale > 0:
            raise InputError(f"MCDropout: prior_scale must be positive or None, got {prior_scale!r}.")
        self.rate, self.prior_scale = rate, prior_scale
        layers_of(network)  # refuses what has none

    def forward(self, *inputs: Tensor) -> Any:
        if not self.training:
            return self.network(*inputs)
        handles = [layer.register_forward_pre_hook(self._mask) for layer in self._masked().values()]
        try:
            return self.network(*inputs)
        finally:
            for handle in handles:
                handle.remove()

    def draw(self, generator: Generator | None = None) -> nn.Module:
        values = {}
        for name, layer in self._masked().items():
            weight = layer.weight.detach()  # type: ignore[operator]  # a tensor, of every such layer
            axis = _input_axis(layer)
            device = weight.device if generator is None else generator.device
            keep = torch.full((weight.shape[axis],), 1 - self.rate, device=device)
            mask = torch.bernoulli(keep, generator=generator).to(weight) / (1 - self.rate)
            shape = [1] * weight.dim()
            shape[axis] = -1
            values[f"{name}.weight"] = weight * mask.reshape(shape)
        return with_weights(self.network, values).eval()

    def weight_decay(self) -> Tensor:
        """(1 - rate) / (2 s^2) sum of squared weights: ()."""
        weights = list(weights_of(self.network).values())
        if self.prior_scale is None:
            return torch.zeros((), device=weights[0].device)
        total = torch.stack([weight.square().sum() for weight in weights]).sum()
        return 0.5 * (1 - self.rate) / self.prior_scale**2 * total

    def _masked(self) -> dict[str, nn.Module]:
        """All layers but the first; one whose channels are in groups has no column for each input."""
        layers = list(called_layers_of(self.network).items())[1:]
        return {name: layer for name, layer in layers if getattr(layer, "groups", 1) == 1}

    def _mask(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, *rest = inputs
        if x.dim() == 2:
            return F.dropout(x, self.rate), *rest
        # positions of a row share their mask, as they do in a draw
        units = [len(x)] + [1] * (x.dim() - 1)
        axis = 1 if isinstance(layer, CONVOLUTIONS) else -1
        units[axis] = x.shape[axis]
        return x * F.dropout(x.new_ones(units), self.rate), *rest


def _input_axis(layer: nn.Module) -> int:
    """Which axis of a layer's weight counts its inputs."""
    return 0 if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d) else 1
