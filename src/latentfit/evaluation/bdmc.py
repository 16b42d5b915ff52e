"""How far annealing is from log p(x), on rows simulated from the model: bidirectional Monte Carlo."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentfit.data.batch import Batch
from latentfit.errors import InputError
from latentfit.evaluation.ais import CHAINS, LEAPFROG, TEMPERATURES, starting_proposal
from latentfit.evaluation.annealing import Settings, annealers, backward, forward, require_exact
from latentfit.evaluation.estimate import Estimate
from latentfit.evaluation.proposal import Proposal
from latentfit.evaluation.rows import evaluation_rows, frozen, to_numpy
from latentfit.model.vae import VAEModule


@dataclass(frozen=True)
class BDMC:
    """Bounds on log p(x) of rows **simulated from the model**, nats per row. Nothing here is about real rows.

    Attributes:
        lower: mean of the annealed estimates, below log p(x) in expectation.
        upper: mean of the reverse estimates, above log p(x) in expectation.
        gap: upper - lower, paired by row: bounds the error of both.
        lower_values, upper_values: (N,); of a single row the two may be the wrong way round, by chance.
        simulated: (N, *data_shape), the rows, on the CPU.
        settings: as in `AIS`.
    """

    lower: Estimate
    upper: Estimate
    gap: Estimate
    lower_values: np.ndarray
    upper_values: np.ndarray
    simulated: Tensor
    settings: Settings

    def __str__(self) -> str:
        return (
            f"log p(x) of {len(self.simulated):,} simulated rows is between {self.lower} and {self.upper} nats "
            f"(gap {self.gap})"
        )


def bdmc(
    vae: VAEModule,
    *,
    n_rows: int = 100,
    context: Any = None,
    n_chains: int = CHAINS,
    n_temperatures: int = TEMPERATURES,
    n_leapfrog: int = LEAPFROG,
    proposal: Proposal | None = None,
    X_train: Any = None,
    random_state: int = 0,
    refinement_steps: int = 100,
    progress: Callable[[int, int], None] | None = None,
) -> BDMC:
    r"""Bound annealing's error from both sides on rows simulated from the model.

        z* ~ p(z), x ~ p(x|z*):   E[log mean_c w_c] <= log p(x) <= E[-log mean_c w'_c]

    z* is an exact draw of p(z given x), so chains that walk from it along the same temperatures backwards have weights
    w' with mean 1 / p(x). By Jensen's inequality the first is a lower bound and the second an upper one, and their gap
    bounds the error of both (Grosse, Ghahramani & Adams 2015, arXiv 1511.02543; Grosse, Ancha & Roy 2016, arXiv
    1606.02275). A mode of the posterior that the chains never find makes the gap wide: z* may lie in it.

    This is a calibration of `ais_log_likelihood` with the same settings on simulated rows. Real rows may be harder:
    where the model does not fit them, their posteriors are others.

    Args:
        vae: the model; its log p(x, z) must be exact and differentiable in z, and p(z) must be what is sampled.
        n_rows: N, rows to simulate.
        context: (n_rows, C), what a conditional model or its likelihood is given.
        n_chains, n_temperatures, n_leapfrog, proposal, X_train, refinement_steps: as in `ais_log_likelihood`.
        random_state: seed, of the rows too.
        progress: called with (step, steps).

    Returns:
        The bounds and their gap.

    Raises:
        CapabilityError: a density that is not exact, or has no gradient.
        InputError: counts that cannot be used, or a context of other than n_rows rows.
    """
    settings = Settings(n_chains, n_temperatures, n_leapfrog, random_state, refinement_steps)
    require_exact(vae)
    e = starting_proposal(vae, proposal, X_train, random_state)
    lower, upper = [], []
    with torch.inference_mode(False), torch.no_grad(), frozen(vae, e, random_state=random_state):
        batch, z = _simulate(vae, n_rows, context, random_state)
        for rows, annealer, noise in annealers(vae, e, batch, settings, progress, passes=3):
            run = forward(annealer, noise, settings)
            back = backward(annealer, z[rows], run.log_step, noise, settings)
            lower.append(run.log_w.logsumexp(1) - math.log(n_chains))
            upper.append(math.log(n_chains) - back.log_w.logsumexp(1))
    below, above = to_numpy(torch.cat(lower)), to_numpy(torch.cat(upper))
    return BDMC(
        lower=Estimate.of(below),
        upper=Estimate.of(above),
        gap=Estimate.of(above - below),
        lower_values=below,
        upper_values=above,
        simulated=batch.x.cpu(),
        settings=settings,
    )


def _simulate(vae: VAEModule, n: int, context: Any, random_state: int) -> tuple[Batch, Tensor]:
    """Rows of p(x) in the units of the data, and the z (n, *event_shape) they were drawn from."""
    if n < 1:
        raise InputError(f"n_rows must be at least 1, got {n}.")
    given = None if context is None else evaluation_rows(context, vae, "context").x.to(vae.device)
    if given is not None and len(given) != n:
        raise InputError(f"bdmc: context has {len(given)} rows, expected n_rows = {n}, one for each simulated row.")
    generator = torch.Generator(device=vae.device).manual_seed(random_state)
    z = vae.prior.sample(n, given, generator)
    x = vae.likelihood.sample(vae.decode(z, given), given, generator)
    if vae.preprocess is not None:
        x = vae.preprocess.inverse(x)
    return Batch(x, context=given), z
