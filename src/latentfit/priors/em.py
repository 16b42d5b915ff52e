"""EM for a mixture of Gaussians, on rows that are themselves Gaussians.

Everything runs in float64 on the CPU, in coordinates with mean 0 and variance 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from latentfit.errors import InputError
from latentfit.priors.components import component_log_prob
from latentfit.priors.rows import CodeRows

#: numbers of components that "auto" tries
CANDIDATES = (1, 3, 10, 30)
#: an iteration sees at most this many draws, and no more than make this many products of two coordinates, but
#: always five per coordinate and component; averaging over iterations makes up for it
MOST_DRAWS, MOST_PRODUCTS = 10_000, 200_000_000
#: with fewer rows an iteration makes several draws of each, so that the noise of the draws does not lead
FEW_DRAWS = 2_000
#: floor of every variance, in units of the data's
FLOOR = 1e-4
#: full steps before the statistics are averaged over iterations
BURN_IN = 15
#: iterations without another `ENOUGH` nats on held-out rows that end a fit
PATIENCE, ENOUGH = 12, 1e-3


@dataclass(frozen=True, slots=True)
class MixtureFit:
    """log_weight (K,), mean (K, D), factor W_k (K, D, D) or its diagonal (K, D), held-out nats per row."""

    log_weight: Tensor
    mean: Tensor
    factor: Tensor
    validation: float

    def log_prob(self, z: Tensor) -> Tensor:
        """(R, D) -> (R,)."""
        parts = component_log_prob(z, self.mean.to(z), self.factor.to(z))
        return (self.log_weight.to(z) + parts).logsumexp(-1)


def fit_mixture(
    rows: CodeRows,
    n_components: int | Literal["auto"],
    covariance: Literal["full", "diagonal"],
    *,
    max_iterations: int,
    random_state: int,
    progress: Callable[[int, int], None] | None = None,
) -> MixtureFit:
    """The best mixture on held-out rows, in the units of the rows."""
    rows = rows.to("cpu", torch.float64)
    centre = rows.mean.mean(0)
    scale = ((rows.mean - centre).square().mean(0) + rows.std.square().mean(0)).sqrt()
    scale = scale.clamp_min(1e-6 * scale.max()).clamp_min(1e-30)
    rows = CodeRows((rows.mean - centre) / scale, rows.std / scale)
    generator = torch.Generator().manual_seed(random_state)
    train, validation = rows.split(0.1, generator)
    # coordinates of unit size: float32 is enough to score them, and twice as fast
    held_out = torch.cat([validation.draw(generator) for _ in range(_n_draws(validation))]).float()
    numbers = candidates(len(train), rows.mean.shape[1], covariance) if n_components == "auto" else [n_components]
    if max(numbers) > len(train):
        raise InputError(
            f"{max(numbers)} components need at least as many rows to fit, got {len(train)} "
            "(and one in ten held out); lower n_components or set it to 'auto'."
        )
    total = max_iterations * len(numbers)
    fits = []
    for i, number in enumerate(numbers):
        tick = None if progress is None else _shifted(progress, i * max_iterations, total)
        fits.append(expectation_maximisation(train, held_out, number, covariance, max_iterations, generator, tick))
    best = smallest_that_suffices(fits, held_out, len(validation))
    if progress is not None:
        progress(total, total)
    factor = best.factor / scale  # columns of W_k, or its diagonal
    validation_score = best.validation - scale.log().sum().item()
    return MixtureFit(best.log_weight, centre + best.mean * scale, factor, validation_score)


def smallest_that_suffices(fits: list[MixtureFit], held_out: Tensor, n_rows: int) -> MixtureFit:
    """The first fit within one standard error (of the paired difference over rows) of the best one.

    The best iterate of many components wins by chance where nothing is to be won. `held_out` (S n_rows, D)
    holds S draws of each row.
    """
    best = max(fits, key=lambda fit: fit.validation)
    for fit in fits:
        if fit is best or n_rows < 2:
            break
        lost = (best.log_prob(held_out) - fit.log_prob(held_out)).view(-1, n_rows).mean(0)
        if lost.mean() <= lost.std() / n_rows**0.5:
            return fit
    return best


def candidates(n_rows: int, dim: int, covariance: Literal["full", "diagonal"]) -> list[int]:
    """Numbers of components worth trying: about 5 D rows for each full one, 20 for each diagonal one."""
    most = n_rows // (5 * dim if covariance == "full" else 20)
    return [k for k in CANDIDATES if k == 1 or k <= most]


def expectation_maximisation(
    train: CodeRows,
    held_out: Tensor,
    n_components: int,
    covariance: Literal["full", "diagonal"],
    max_iterations: int,
    generator: Generator,
    progress: Callable[[int], None] | None = None,
) -> MixtureFit:
    """EM from a k-means start; the best iterate on `held_out` (R, D)."""
    n_draws = _n_draws(train)
    dim = train.mean.shape[1]
    width = dim * dim if covariance == "full" else dim
    most = min(MOST_DRAWS, max(5 * dim * n_components, MOST_PRODUCTS // (n_components * width)))
    z = _draws(train, n_draws, most, generator)
    labels = k_means(z[:5_000], n_components, generator)
    responsibility = torch.nn.functional.one_hot(labels, n_components).to(z.dtype)
    statistics = _statistics(z[:5_000], responsibility, covariance)
    fit = _maximise(statistics, len(train), covariance, held_out)
    best, waited = fit, 0
    for t in range(max_iterations):
        z = _draws(train, n_draws, most, generator)
        single = component_log_prob(z.float(), fit.mean.float(), fit.factor.float())
        log_joint = fit.log_weight + single.double()
        log_density = log_joint.logsumexp(-1, keepdim=True)
        new = _statistics(z, (log_joint - log_density).exp(), covariance)
        step = 1.0 if t < BURN_IN else (t - BURN_IN + 2) ** -0.6
        statistics = [(1 - step) * old + step * fresh for old, fresh in zip(statistics, new, strict=True)]
        if t < max_iterations // 2:
            _revive(statistics, z, log_density.squeeze(-1), len(train), generator)
        fit = _maximise(statistics, len(train), covariance, held_out)
        waited = 0 if fit.validation > best.validation + ENOUGH else waited + 1
        best = max(best, fit, key=lambda f: f.validation)
        if progress is not None:
            progress(t + 1)
        if waited >= (3 if n_components == 1 else PATIENCE):
            break
    return best


def k_means(z: Tensor, n_clusters: int, generator: Generator, restarts: int = 5) -> Tensor:
    """Labels (R,) of the tightest of several runs: z (R, D).

    One run often leaves two clusters merged and another halved, which EM then cannot undo.
    """
    runs = [_lloyd(z, n_clusters, generator) for _ in range(restarts if n_clusters > 1 else 1)]
    return min(runs, key=lambda run: run[1])[0]


def _lloyd(z: Tensor, n_clusters: int, generator: Generator, iterations: int = 15) -> tuple[Tensor, float]:
    """Labels (R,) and the sum of squares of Lloyd's iterations from a k-means++ start.

    Source: Arthur & Vassilvitskii (2007), k-means++.
    """
    first = torch.randint(len(z), (1,), generator=generator)
    centres = z[first]
    nearest = torch.full((len(z),), math.inf, dtype=z.dtype)
    for _ in range(n_clusters - 1):
        nearest = torch.minimum(nearest, (z - centres[-1]).square().sum(-1))
        weight = nearest if bool(nearest.sum() > 0) else torch.ones_like(nearest)
        centres = torch.cat((centres, z[torch.multinomial(weight, 1, generator=generator)]))
    labels = torch.cdist(z, centres).argmin(1)
    for _ in range(iterations):
        count = torch.bincount(labels, minlength=n_clusters).to(z.dtype)
        sums = torch.zeros_like(centres).index_add(0, labels, z)
        centres = torch.where(count[:, None] > 0, sums / count[:, None].clamp_min(1), centres)
        previous, labels = labels, torch.cdist(z, centres).argmin(1)
        if bool((previous == labels).all()):
            break
    return labels, (z - centres[labels]).square().sum().item()


def _n_draws(rows: CodeRows) -> int:
    return max(1, math.ceil(FEW_DRAWS / len(rows)))


def _draws(rows: CodeRows, n_draws: int, most: int, generator: Generator) -> Tensor:
    """Fresh draws in random order, of a random part of the rows where there are more than `most`: (R, D)."""
    if len(rows) > most:
        picked = torch.randint(len(rows), (most,), generator=generator)
        return rows[picked].draw(generator)
    z = torch.cat([rows.draw(generator) for _ in range(n_draws)])
    return z[torch.randperm(len(z), generator=generator)]


def _statistics(z: Tensor, responsibility: Tensor, covariance: str) -> list[Tensor]:
    """Means over rows of r_k, r_k z and r_k z z^T (or r_k z^2): (K,), (K, D), (K, D, D) or (K, D)."""
    weight = responsibility / len(z)
    if covariance == "diagonal":
        second = weight.T @ z.square()
    else:
        second = torch.stack([(z * column[:, None]).T @ z for column in weight.T])
    return [weight.sum(0), weight.T @ z, second]


def _maximise(statistics: list[Tensor], n_rows: int, covariance: str, held_out: Tensor) -> MixtureFit:
    """Weights, means, floored covariances; full ones as if D + 1 uncorrelated rows had been seen as well."""
    share, first, second = statistics
    safe = share.clamp_min(1e-12)
    mean = first / safe[:, None]
    log_weight = safe.log() - safe.sum().log()
    if covariance == "diagonal":
        variance = (second / safe[:, None] - mean.square()).clamp_min(0) + FLOOR
        factor = variance.rsqrt()
    else:
        dim = mean.shape[1]
        scatter = second / safe[:, None, None] - mean[:, :, None] * mean[:, None, :]
        variance = scatter.diagonal(dim1=-2, dim2=-1).clamp_min(0)
        seen = (share * n_rows / (share * n_rows + dim + 1))[:, None, None]
        scatter = seen * scatter + (1 - seen) * torch.diag_embed(variance)
        identity = torch.eye(dim, dtype=mean.dtype)
        lower = torch.linalg.cholesky(scatter + FLOOR * identity)
        factor = torch.linalg.solve_triangular(lower, identity.expand_as(lower), upper=False)
    fit = MixtureFit(log_weight, mean, factor, -math.inf)
    score = fit.log_prob(held_out).mean().item()
    return MixtureFit(log_weight, mean, factor, score if math.isfinite(score) else -math.inf)


def _revive(statistics: list[Tensor], z: Tensor, log_density: Tensor, n_rows: int, generator: Generator) -> None:
    """Put components with under two rows where the density is poorest, with the average covariance."""
    share, first, second = statistics
    dead = (share * n_rows < 2).nonzero().flatten()
    if not len(dead) or len(dead) == len(share):
        return
    mean = first / share.clamp_min(1e-12)[:, None]
    moment = (lambda m: m.square()) if second.dim() == 2 else (lambda m: m[:, :, None] * m[:, None, :])
    weights = share.view(-1, *[1] * (second.dim() - 1))
    within = (second - weights * moment(mean)).sum(0) / share.sum()
    poorest = log_density.topk(max(len(dead), len(z) // 100), largest=False).indices
    places = z[poorest[torch.randperm(len(poorest), generator=generator)[: len(dead)]]]
    new_share = 1 / len(share)
    share[dead] = new_share
    first[dead] = new_share * places
    second[dead] = new_share * (within + moment(places))


def _shifted(progress: Callable[[int, int], None], done: int, total: int) -> Callable[[int], None]:
    return lambda step: progress(done + step, total)
