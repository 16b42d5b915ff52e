"""How hard to press: the strength of the KL that suits new rows, and where the prior starts to fail, in one run."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from latentfit.data.batch import Batch
from latentfit.data.rows import as_batch
from latentfit.errors import InputError
from latentfit.evaluation.codes import encode_rows
from latentfit.evaluation.estimate import Estimate
from latentfit.evaluation.gap import prior_gap
from latentfit.evaluation.ladder import WORTHWHILE
from latentfit.evaluation.terms import elbo_terms
from latentfit.model import ELBO, RECIPE, FitOptions, VAEModule, fit
from latentfit.model.schedules import Linear
from latentfit.priors import LearnedGaussianPrior
from latentfit.training import Recipe
from latentfit.training.rng import isolated_rng

BETAS = (8.0, 4.0, 2.8, 2.0, 1.4, 1.0, 0.7, 0.5, 0.25)


@dataclass(frozen=True)
class BetaTuning:
    """What a run along falling strengths found.

    Attributes:
        beta: the strength to train at: the best held-out ELBO at weight 1, the nearest to 1 within one standard error.
        knee: the least strength before the prior gap grows by more than 0.1 nats; below it the codes leave the prior.
        found: whether it grew at all; otherwise `knee` is the least that was tried.
        betas: the strengths, falling.
        gaps: T of one learned Gaussian at each, held-out rows, nats per row.
        elbos: the held-out ELBO at weight 1 at each, nats per row, on the way: a full training ends higher.
        steps: gradient steps in all.
    """

    beta: float
    knee: float
    found: bool
    betas: tuple[float, ...]
    gaps: tuple[Estimate, ...]
    elbos: tuple[Estimate, ...]
    steps: int

    def __str__(self) -> str:
        lines = [f"{'beta':>6}  {'prior gap':>14}  {'ELBO':>16}"]
        for beta, gap, elbo in zip(self.betas, self.gaps, self.elbos, strict=True):
            at = {"best": self.beta, "knee": self.knee if self.found else None}
            marks = ", ".join(word for word, where in at.items() if where == beta)
            lines.append(f"{beta:>6g}  {gap!s:>14}  {elbo!s:>16}" + (f"  < {marks}" if marks else ""))
        return "\n".join(lines)


def tune_beta(
    module: VAEModule,
    X: Any,
    *,
    X_held_out: Any = None,
    held_out_fraction: float = 0.2,
    betas: Sequence[float] = BETAS,
    prepare: Callable[[Batch], Batch] | None = None,
    recipe: Recipe | None = None,
    random_state: int = 0,
    **settings: Any,
) -> BetaTuning:
    r"""The KL weight that new rows like best, and the one at which the prior gap starts to grow, found in one run.

    A copy of the VAE is trained at the largest beta, then goes on at each smaller one, and at each the ELBO of held-out
    rows is taken at weight 1: a strong KL costs reconstruction, a weak one the KL itself. Beside it T(r), the held-out
    nats that another prior would win: a strong KL keeps q(z) where the prior is; below some strength, the knee, the
    codes leave it and T grows from its least value. r is one Gaussian: closed form, so that its noise does not hide
    the knee. A gap that is wide open at the best strength says that the prior is to be learned, not pressed harder.

    Args:
        module: an untrained VAE; it is left alone.
        X: rows, as `latentfit.fit` takes them.
        X_held_out: rows for T and the ELBO; by default a share `held_out_fraction` of X.
        betas: the strengths to go through, falling.
        prepare: as in `fit`.
        recipe, settings: as in `fit`; `max_steps` is that of the whole run.
        random_state: of the split, the training, and T's draws.

    Returns:
        Both strengths, and the path. Train with `ELBO(schedules.linear(..., end=found.beta))`.

    Raises:
        InputError: strengths that do not fall or are not positive, fewer steps than strengths.
        CapabilityError: a prior whose density is not exact.

    Source: the knee of the marginal KL: Rybkin et al. (2021), arXiv:2006.13202, figure 4.
    """
    path = tuple(float(beta) for beta in betas)
    if len(path) < 2 or min(path) <= 0 or any(a <= b for a, b in itertools.pairwise(path)):
        raise InputError(f"tune_beta: betas must be positive and falling, at least two; got {list(path)}.")
    settings.setdefault("schedule", "constant")  # each strength goes on from the one before
    settings["patience"] = None
    recipe = recipe or RECIPE
    total = settings.pop("max_steps", None) or recipe.max_steps
    share = total // (len(path) + 1)  # the first, from random weights, has two
    if share < 1:
        raise InputError(f"tune_beta: {total} steps are too few for {len(path)} strengths.")
    if "learning_rate" not in settings:
        recipe = dataclasses.replace(recipe, learning_rate=0.5 * recipe.learning_rate)
    train, held_out = _split(X, X_held_out, held_out_fraction, random_state)
    if prepare is not None and X_held_out is None:
        with isolated_rng(random_state):
            held_out = prepare(held_out)
    vae = copy.deepcopy(module)
    gaps, terms = [], []
    for i, beta in enumerate(path):
        steps = total - (len(path) - 1) * share if i == 0 else share
        objective = ELBO(Linear(steps=max(1, steps // 3), end=beta) if i == 0 else beta)
        fit(
            vae,
            train,
            objective=objective,
            validation_fraction=0.0,
            prepare=prepare,
            recipe=recipe,
            max_steps=steps,
            random_state=random_state + i,
            **settings,
        )
        gaps.append(_gap(vae, train, held_out, prepare, random_state))
        terms.append(elbo_terms(vae, held_out, random_state=random_state))
    at = knee([gap.value for gap in gaps])
    return BetaTuning(
        beta=path[best(path, [part.elbo_per_row for part in terms])],
        knee=path[at],
        found=at < len(path) - 1,
        betas=path,
        gaps=tuple(gaps),
        elbos=tuple(part.elbo for part in terms),
        steps=total,
    )


def best(betas: Sequence[float], elbos: Sequence[np.ndarray]) -> int:
    """Of the places whose mean is within one (paired) standard error of the highest, that of the beta nearest to 1."""
    highest = max(elbos, key=np.mean)
    short = [Estimate.of(highest - values) for values in elbos]
    near = [i for i, gap in enumerate(short) if gap.value <= gap.std_error]
    return min(near, key=lambda i: abs(math.log(betas[i])))


def knee(gaps: Sequence[float]) -> int:
    """The last place, from that of the least gap on, before one exceeds it by `WORTHWHILE`."""
    least = min(range(len(gaps)), key=gaps.__getitem__)
    at = least
    while at + 1 < len(gaps) and gaps[at + 1] <= gaps[least] + WORTHWHILE:
        at += 1
    return at


def _gap(
    vae: VAEModule, train: Batch, held_out: Batch, prepare: Callable[[Batch], Batch] | None, random_state: int
) -> Estimate:
    with isolated_rng(random_state):
        seen = encode_rows(vae, train if prepare is None else prepare(train))
    r = LearnedGaussianPrior(tuple(vae.event_shape)).to(seen.mean.device)
    r.fit_rows(seen.rows(r), FitOptions(random_state=random_state))
    return prior_gap(r, vae.prior, encode_rows(vae, held_out), random_state=random_state)


def _split(X: Any, X_held_out: Any, fraction: float, random_state: int) -> tuple[Batch, Batch]:
    rows = as_batch(X)
    if X_held_out is not None:
        return rows, as_batch(X_held_out, what="X_held_out")
    if not 0 < fraction < 1:
        raise InputError(f"held_out_fraction must be between 0 and 1, got {fraction}.")
    n = max(2, round(fraction * len(rows)))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(random_state))
    return rows[order[n:]], rows[order[:n]]
