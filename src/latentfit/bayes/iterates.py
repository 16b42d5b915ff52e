"""SWAG: a Gaussian around the iterates of a training that goes on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from latentfit.bayes.holding import inputs_of, normalisations, refresh, rest_held
from latentfit.bayes.layers import normal_like, weights_of, with_weights
from latentfit.data.batch import Batch
from latentfit.data.rows import Rows
from latentfit.errors import InputError
from latentfit.model.uncertain import Loss, UncertainNetwork
from latentfit.training import Recipe, isolated_rng, minimise


class SWAG(UncertainNetwork):
    r"""A Gaussian with the mean and the low-rank covariance of the weights along a training at constant rate.

        w = m + (v / 2)^(1/2) e_1 + D e_2 / sqrt(2 (K - 1)),   e ~ N(0, I)

    m and v are mean and variance of the iterates, D (P, K) the last K of them less the running mean. Once training has
    ended, the network alone is trained on for `share` of its steps at `rate` times the peak rate, the rest of the model
    held; every `every` steps an iterate is collected. Eval mode is the mean.

    Running statistics of batches (BatchNorm) are taken anew for the mean and for every draw, over what up to 512
    training rows gave the network to read, which is stored with it: statistics of other weights would be wrong.

    The spread is that of the optimiser around the optimum: it follows the posterior's directions, but its size is the
    learning rate's as much as the posterior's.

    Args:
        network: the network.
        rank: K, deviations kept.
        share: of the training's steps, gone on with.
        rate: of its peak learning rate.
        every: steps between iterates.

    Raises:
        InputError: a number that cannot be used.

    Source: Maddox et al. 2019 (arXiv 1902.02476); the rate sets the size: Mandt, Hoffman and Blei 2017 (arXiv
    1704.04289).
    """

    variance: Tensor
    deviations: Tensor
    n_collected: Tensor

    def __init__(
        self, network: nn.Module, rank: int = 20, share: float = 0.25, rate: float = 0.5, every: int = 5
    ) -> None:
        super().__init__(network)
        if rank < 2 or every < 1 or not (share > 0 and rate > 0):
            raise InputError(
                "SWAG: rank must be at least 2, every at least 1, share and rate positive; got "
                f"{rank}, {every}, {share} and {rate}."
            )
        self.rank, self.share, self.rate, self.every = rank, share, rate, every
        like = _flat(network)
        self.register_buffer("variance", torch.zeros_like(like))
        self.register_buffer("deviations", like.new_zeros(rank, len(like)))
        self.register_buffer("n_collected", torch.zeros((), dtype=torch.int64))

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.network(*inputs)

    def draw(self, generator: Generator | None = None) -> nn.Module:
        mean = _flat(self.network)
        kept = min(int(self.n_collected), self.rank)
        flat = mean + (0.5 * self.variance).sqrt() * normal_like(mean, generator)
        if kept > 1:
            noise = normal_like(mean[:1].expand(kept), generator)
            flat = flat + noise @ self.deviations[:kept] / math.sqrt(2 * (kept - 1))
        drawn = with_weights(self.network, _unflat(self.network, flat)).eval()
        refresh(drawn, self._reference())
        return drawn

    def explore(self, model: nn.Module, loss: Loss, rows: Rows, recipe: Recipe, random_state: int) -> None:
        steps = max(self.rank * self.every, round(self.share * recipe.max_steps))
        settings = dataclasses.replace(
            recipe,
            max_steps=steps,
            learning_rate=self.rate * recipe.learning_rate,
            schedule="constant",
            ema_decay=0.0,
            patience=None,
        )
        weights = list(weights_of(self.network).values())
        moments = Moments(_flat(self.network), self.rank)

        def collecting(batch: Batch, step: int) -> Mapping[str, Tensor]:
            if step % self.every == 0 and step > 0:
                moments.add(weights)
            return loss(batch)

        with rest_held(model, self.network):
            minimise(self.network, collecting, rows, settings, random_state=random_state, what="swag")
        moments.add(weights)
        with torch.no_grad():
            for name, value in _unflat(self.network, moments.mean).items():
                dict(self.network.named_parameters())[name].copy_(value)
            self.variance.copy_(moments.variance)
            self.deviations.copy_(moments.deviations)
            self.n_collected.fill_(moments.n)
        if normalisations(self.network):
            device = self.variance.device
            with rest_held(model, self.network), isolated_rng(random_state, device):
                self._keep(inputs_of(self.network, loss, rows, device, random_state))
            refresh(self.network, self._reference())

    def _keep(self, inputs: list[Tensor]) -> None:
        for i, x in enumerate(inputs):
            self.register_buffer(f"reference_{i}", x)

    def _reference(self) -> list[Tensor]:
        return [value for name, value in self.named_buffers(recurse=False) if name.startswith("reference_")]

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        """Makes room for the reference inputs, whose shapes only a run knows."""
        start = f"{prefix}reference_"
        names = sorted((key for key in state_dict if key.startswith(start)), key=lambda key: int(key[len(start) :]))
        self._keep([torch.empty_like(state_dict[name]).to(self.variance.device) for name in names])
        super()._load_from_state_dict(state_dict, prefix, *args)


class Moments:
    """Running mean and variance of iterates (P,), and the last few of them less the mean of their time."""

    def __init__(self, like: Tensor, rank: int) -> None:
        self.mean, self.square = torch.zeros_like(like), torch.zeros_like(like)
        self.deviations = like.new_zeros(rank, len(like))
        self.n = 0
        self._before = torch.empty_like(like)

    @property
    def variance(self) -> Tensor:
        """(P,), without bias."""
        return self.square / max(1, self.n - 1)

    def add(self, weights: Sequence[Tensor]) -> None:
        """Count an iterate, given as its parts."""
        after = self.deviations[self.n % len(self.deviations)]
        torch.cat([w.detach().flatten() for w in weights], out=after)
        torch.sub(after, self.mean, out=self._before)
        self.mean.add_(self._before, alpha=1 / (self.n + 1))
        after.sub_(self.mean)
        self.square.addcmul_(self._before, after)  # Welford: no difference of large squares
        self.n += 1


def _flat(network: nn.Module) -> Tensor:
    """All uncertain weights as one vector (P,)."""
    return torch.cat([p.detach().flatten() for p in weights_of(network).values()])


def _unflat(network: nn.Module, flat: Tensor) -> dict[str, Tensor]:
    named = weights_of(network)
    parts = flat.split([p.numel() for p in named.values()])
    return {name: part.view_as(p) for (name, p), part in zip(named.items(), parts, strict=True)}
