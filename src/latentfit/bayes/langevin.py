"""Stochastic gradient Langevin dynamics: weights sampled from their posterior by noisy descent."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from latentfit.bayes.ensemble import without_repetition
from latentfit.bayes.holding import rest_held
from latentfit.bayes.layers import layers_of, weights_of
from latentfit.data.rows import Rows
from latentfit.errors import InputError
from latentfit.model.uncertain import Loss, UncertainNetwork
from latentfit.training import Recipe, isolated_rng
from latentfit.training.batches import ShuffledEpochs

#: rows of one gradient from which the rows' own gradients are estimated, and how many such gradients
CHUNK, N_CHUNKS = 8, 64
#: the minibatch's noise may have at most this share of the injected noise's variance
NOISE_SHARE = 0.1


class SGLD(UncertainNetwork):
    r"""Iterates of Langevin dynamics as draws from the weights' posterior.

        w <- w - (e / 2) G (N grad loss(batch) + w / s^2) + (e G)^(1/2) xi,   xi ~ N(0, I)

    The target is prod_n p(x_n given w) N(w; 0, s^2) by the objective's own bound. G is fixed and diagonal, G_i =
    1 / (N F_i + 1 / s^2), F the mean square of the rows' gradients at the trained weights: e is then in posterior
    variances of each weight given the others, and the discretisation makes a variance too large by a factor of about
    1 / (1 - e / 4). Once training has ended, the network walks for `burn_in` + `n_draws` `thinning` steps, the rest of
    the model held; every `thinning`-th iterate is kept. Eval mode is the trained network, where the walk began.

    Args:
        network: the network.
        n_draws: iterates kept.
        step_size: e; None: 0.05, less where the minibatch's noise, e N / (4 batch size) of the injected one, would be
            above a tenth.
        burn_in, thinning: steps; None: four and one relaxation times, 2 / e.
        prior_scale: s; None: the root mean square of each trained tensor.
        temperature: T; the target is the posterior to the power 1 / T. 1 is Bayes, below it the posterior is cold (see
            `MeanField`).

    Raises:
        InputError: a number that cannot be used.
        CapabilityError: a network without dense or convolutional layers, or whose layers share weights.

    Sources: Welling and Teh 2011; preconditioned: Li et al. 2016 (arXiv 1512.07666), with G fixed, which needs no
    correction.
    """

    def __init__(
        self,
        network: nn.Module,
        n_draws: int = 10,
        step_size: float | None = None,
        burn_in: int | None = None,
        thinning: int | None = None,
        prior_scale: float | None = None,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(network)
        for name, value in (
            ("n_draws", n_draws),
            ("step_size", step_size),
            ("thinning", thinning),
            ("prior_scale", prior_scale),
            ("temperature", temperature),
        ):
            if value is not None and not value > 0:
                raise InputError(f"SGLD: {name} must be positive, got {value!r}.")
        if step_size is not None and step_size >= 4:
            raise InputError(f"SGLD: a step_size of {step_size} diverges; it is in posterior variances, below 1.")
        self.n_draws, self.step_size = n_draws, step_size
        self.burn_in, self.thinning, self.prior_scale = burn_in, thinning, prior_scale
        self.temperature = temperature
        layers_of(network)  # refuses now what the walk could not take after the training
        kept = [copy.deepcopy(network) for _ in range(n_draws)]
        self.kept = nn.ModuleList(kept).requires_grad_(False)

    def forward(self, *inputs: Tensor) -> Any:
        return self.network(*inputs)

    def draw(self, generator: Generator | None = None) -> nn.Module:
        return next(self.draws(1, generator))

    def draws(self, n: int, generator: Generator | None = None) -> Iterator[nn.Module]:
        yield from without_repetition(list(self.kept), n, generator)

    def explore(self, model: nn.Module, loss: Loss, rows: Rows, recipe: Recipe, random_state: int) -> None:
        walker = copy.deepcopy(self.network)
        place = next(name for name, part in model.named_children() if part is self)
        device = next(self.network.parameters()).device
        batch_size = min(recipe.batch_size, len(rows))
        e = self.step_size or min(0.05, 4 * NOISE_SHARE * batch_size / len(rows))
        relaxation = max(1, round(2 / e))
        burn_in = 4 * relaxation if self.burn_in is None else self.burn_in
        thinning = relaxation if self.thinning is None else int(self.thinning)
        setattr(model, place, walker)
        try:
            with rest_held(model, walker), isolated_rng(random_state, device):
                parameters = list(weights_of(walker).values())
                scales = [self.prior_scale or float(p.detach().square().mean().sqrt()) or 1.0 for p in parameters]

                def gradient(size: int) -> Callable[[], Sequence[Tensor]]:
                    epochs = ShuffledEpochs(len(rows), size, random_state)

                    def of_a_batch() -> Sequence[Tensor]:
                        total = loss(rows.batch(epochs.next()).to(device))["loss"]
                        return torch.autograd.grad(total, parameters)

                    return of_a_batch

                chunks = gradient(min(CHUNK, len(rows)))
                squares = [torch.zeros_like(p) for p in parameters]
                for _ in range(N_CHUNKS):
                    for square, g in zip(squares, chunks(), strict=True):
                        square += min(CHUNK, len(rows)) * g.square() / N_CHUNKS
                walk = langevin(parameters, gradient(batch_size), squares, scales, len(rows), e, self.temperature)
                for _ in range(burn_in):
                    next(walk)
                for kept in self.kept:
                    for _ in range(thinning):
                        next(walk)
                    kept.load_state_dict(walker.state_dict())
        finally:
            setattr(model, place, self)


def langevin(
    parameters: Sequence[Tensor],
    gradient: Callable[[], Sequence[Tensor]],
    squares: Sequence[Tensor],
    prior_scales: Sequence[float],
    n_rows: int,
    step_size: float,
    temperature: float = 1.0,
) -> Iterator[None]:
    """Walk for ever, changing `parameters` in place; one step for each `next`. See `SGLD`.

    Args:
        parameters: w.
        gradient: of the mean loss over a batch, one tensor for each parameter.
        squares: F, mean squares of the rows' gradients.
        prior_scales: s of each parameter.
        n_rows: N.
        step_size: e.
        temperature: T, of the injected noise.
    """
    precisions = [s**-2 for s in prior_scales]
    scales = [1 / (n_rows * f + q) for f, q in zip(squares, precisions, strict=True)]  # G
    # what does not change is multiplied out once, and the noise has a place of its own: a step is three passes
    slopes = [-0.5 * step_size * n_rows * g for g in scales]
    shrink = [1 - 0.5 * step_size * q * g for g, q in zip(scales, precisions, strict=True)]
    spread = [(step_size * temperature * g).sqrt() for g in scales]
    noise = [torch.empty_like(p) for p in parameters]
    while True:
        gradients = gradient()
        with torch.no_grad():
            for i, (p, g) in enumerate(zip(parameters, gradients, strict=True)):
                p.mul_(shrink[i]).addcmul_(slopes[i], g).addcmul_(spread[i], noise[i].normal_())
        yield
