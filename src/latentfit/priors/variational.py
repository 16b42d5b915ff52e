"""Variational Bayes for a Dirichlet-process mixture of Gaussians, on rows that are themselves Gaussians.

Coordinate ascent on the bound, with the statistics of stepwise EM (`em.py`) so that rows are redrawn in every
iteration and many rows are seen in parts. It starts from many k-means clusters, and pairs of components are merged
where the bound rises by it: coordinate ascent alone would keep two halves of one cluster apart for ever.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from latentfit.priors import sticks
from latentfit.priors.em import MixtureFit, features, salience
from latentfit.priors.k_means import k_means
from latentfit.priors.normal_wishart import Hyper, Statistics, divergence, expected_constant, inverse_factor
from latentfit.priors.rows import CodeRows, moments

#: draws of an iteration: one of each row, within these bounds
FEWEST_DRAWS, MOST_DRAWS = 2_000, 10_000
#: rows whose features are in memory at once
BLOCK = 2_000
#: rows of a component of the start, at least
ROWS_EACH = 5
#: iterations between merges and looks at the bound; how many looks without another `ENOUGH` nats a row end a fit
EVERY, PATIENCE, ENOUGH = 5, 2, 1e-3
#: weight of an iteration in the running statistics, at least
LEAST_STEP = 0.05
#: a component with fewer rows is none
EMPTY = 0.5


@dataclass(frozen=True, slots=True)
class Posterior:
    """Counts (K,), largest first; means (K, D); E C (K, D, D); the hyper-prior; the bound on log p, nats per row."""

    n: Tensor
    mean: Tensor
    covariance: Tensor
    hyper: Hyper
    bound: float


@dataclass(frozen=True, slots=True)
class _Coordinates:
    """u = (z - centre) / scale, in which features keep their digits in float32; statistics are of z."""

    rows: CodeRows
    centre: Tensor
    scale: Tensor

    def draw(self, index: Tensor, generator: Generator) -> Tensor:
        """One draw of each of some rows: (R, D), float32."""
        rows = self.rows[index.to(self.rows.mean.device)].to("cpu", self.rows.mean.dtype)
        noise = torch.randn(rows.mean.shape, generator=generator, dtype=rows.mean.dtype)
        centre, scale = self.centre.to(rows.mean), self.scale.to(rows.mean)
        return ((rows.mean - centre + rows.std * noise) / scale).float()

    def statistics(self, sums: Tensor, n_rows: int) -> Statistics:
        """Of z, from mean features of u per row and component (K, F)."""
        dim = len(self.scale)
        share, first, second = sums[:, 0], sums[:, 1 : dim + 1], sums[:, dim + 1 :]
        mean = first / share.clamp_min(1e-12)[:, None]
        row, column = torch.triu_indices(dim, dim)
        moment = mean.new_zeros(len(mean), dim, dim)
        moment[:, row, column] = moment[:, column, row] = second
        scatter = n_rows * (moment - share[:, None, None] * mean[:, :, None] * mean[:, None, :])
        both = self.scale[:, None] * self.scale
        return Statistics(n_rows * share, self.centre + mean * self.scale, scatter * both)

    def natural(self, posterior: Posterior, alpha: float) -> Tensor:
        """theta (K, F): E log pi_k + E log N(z; mu_k, C_k), up to the log-determinant of u, as theta . f(u)."""
        n, dim = posterior.n, len(self.scale)
        factor = inverse_factor(posterior.covariance)
        constant, slope = expected_constant(n, dim, posterior.hyper)
        # a Gaussian of precision slope W^T W has half of D log slope more in its constant
        weight = sticks.mean_log_weights(n, alpha) + constant - 0.5 * dim * slope.log()
        stretched = factor * slope.sqrt()[:, None, None] * self.scale
        return MixtureFit(weight, (posterior.mean - self.centre) / self.scale, stretched).natural()


def fit_mixture(
    rows: CodeRows,
    truncation: int,
    alpha: float,
    *,
    max_iterations: int,
    random_state: int,
    progress: Callable[[int, int], None] | None = None,
) -> Posterior:
    """The posterior with the larger bound: of one component, or of those that are left of `truncation`."""
    generator = torch.Generator().manual_seed(random_state)
    centre, variance = moments(rows)
    scale = variance.sqrt()
    unit = _Coordinates(rows, centre, scale.clamp_min(1e-6 * scale.max()).clamp_min(1e-30))
    n_draws = min(MOST_DRAWS, max(FEWEST_DRAWS, len(rows)))
    order = _order(len(rows), n_draws, generator)
    u = unit.draw(next(order), generator)
    one = _Ascent(unit, alpha, torch.zeros(len(u), dtype=torch.long), u, 1).finish(u)
    n_start = min(truncation, len(rows) // ROWS_EACH)
    if n_start < 2:
        return one
    ascent = _Ascent(unit, alpha, k_means(u * salience(u), n_start, generator), u, n_start)
    best, waited = -math.inf, 0
    for t in range(max_iterations):
        u = unit.draw(next(order), generator)
        responsibility, bound = ascent.step(u, t)
        if progress is not None:
            progress(t + 1, max_iterations)
        if (t + 1) % EVERY == 0:
            merged = ascent.merge(responsibility)
            ascent.learn_hyper()
            waited = 0 if merged or bound > best + ENOUGH else waited + 1
            best = bound if merged else max(best, bound)
            if waited >= PATIENCE or len(ascent.sums) == 1:
                break
    many = ascent.finish(u)
    if progress is not None:
        progress(max_iterations, max_iterations)
    return many if many.bound > one.bound else one


class _Ascent:
    """Running statistics and what they imply."""

    def __init__(self, unit: _Coordinates, alpha: float, labels: Tensor, u: Tensor, n_components: int) -> None:
        self.unit, self.alpha, self.n_rows = unit, alpha, len(unit.rows)
        hard = torch.nn.functional.one_hot(labels, n_components).to(u.dtype)
        self.sums = _sums(u, hard)
        self.learn_hyper()

    def learn_hyper(self) -> None:
        """The hyper-prior of largest evidence given the statistics."""
        self.hyper = self.statistics().best_hyper()

    def statistics(self) -> Statistics:
        return self.unit.statistics(self.sums, self.n_rows)

    def posterior(self, bound: float = math.nan) -> Posterior:
        statistics = self.statistics()
        return Posterior(statistics.n, *statistics.posterior(self.hyper), self.hyper, bound)

    def step(self, u: Tensor, t: int) -> tuple[Tensor, float]:
        """One iteration: responsibilities (R, K) and the bound, nats per row, at the parameters before it."""
        self._sort()
        responsibility, bound = self._expect(u)
        self.sums = torch.lerp(self.sums, _sums(u, responsibility), max((t + 1) ** -0.6, LEAST_STEP))
        kept = self.n_rows * self.sums[:, 0] >= EMPTY
        self.sums = self.sums[kept]
        return responsibility[:, kept], bound

    def finish(self, u: Tensor) -> Posterior:
        """The posterior, with its bound on these draws."""
        self._sort()
        return self.posterior(self._expect(u)[1])

    def merge(self, responsibility: Tensor) -> bool:
        """Merge pairs while the bound rises by it; whether any were."""
        merged = False
        pairs = _Pairs(self, responsibility)
        while len(self.sums) > 1:
            gain, j, k = pairs.best()
            if gain <= 0:
                break
            self.sums = pairs.join(j, k)
            merged = True
        return merged

    def _sort(self) -> None:
        self.sums = self.sums[self.sums[:, 0].argsort(descending=True)]

    def _expect(self, u: Tensor) -> tuple[Tensor, float]:
        posterior = self.posterior()
        theta = self.unit.natural(posterior, self.alpha).to(u.dtype)
        parts, total = [], 0.0
        for block in u.split(BLOCK):
            joint = _features(block) @ theta.T  # (R, K)
            log_density = joint.logsumexp(-1, keepdim=True)
            total += log_density.double().sum().item()
            parts.append((joint - log_density).exp())
        factor = inverse_factor(posterior.covariance)
        kl = divergence(
            (factor @ posterior.mean.unsqueeze(-1)).square().sum((1, 2)),
            factor.square().sum((1, 2)),
            factor.diagonal(dim1=-2, dim2=-1).log().sum(-1),
            posterior.n,
            len(self.unit.scale),
            self.hyper,
        ).sum() + sticks.divergence(posterior.n, self.alpha)
        bound = total / len(u) - self.unit.scale.log().sum().item() - kl.item() / self.n_rows
        return torch.cat(parts), bound


class _Pairs:
    """What merging each pair of components would do to the bound, the responsibilities of the rest unchanged."""

    def __init__(self, ascent: _Ascent, responsibility: Tensor) -> None:
        self.ascent, self.sums, self.responsibility = ascent, ascent.sums, responsibility
        self.weight = ascent.n_rows / len(responsibility)
        self.own = ascent.statistics().evidence(ascent.hyper)
        k = len(self.sums)
        self.gains = torch.full((k, k), -math.inf, dtype=torch.float64)
        for j in range(k):
            self._fill(j)

    def best(self) -> tuple[float, int, int]:
        """The largest gain, and its pair."""
        counts = self.ascent.n_rows * self.sums[:, 0]
        k = len(counts)
        together = counts.expand(k, k, k).clone()
        i, j = torch.meshgrid(torch.arange(k), torch.arange(k), indexing="ij")
        together[i, j, i] += counts
        together[i, j, j] = 0
        ordered = together.sort(-1, descending=True).values
        alpha = self.ascent.alpha
        of_sticks = sticks.evidence(ordered, alpha) - sticks.evidence(counts.sort(descending=True).values, alpha)
        gains = (self.gains + of_sticks).fill_diagonal_(-math.inf)
        first, second = divmod(int(gains.argmax()), k)
        return gains[first, second].item(), first, second

    def join(self, j: int, k: int) -> Tensor:
        """Merge k into j: the statistics afterwards (K - 1, F)."""
        self.sums = self.sums.clone()
        self.sums[j] += self.sums[k]
        self.responsibility = self.responsibility.clone()
        self.responsibility[:, j] += self.responsibility[:, k]
        kept = torch.arange(len(self.sums)) != k
        self.sums, self.responsibility, self.own = self.sums[kept], self.responsibility[:, kept], self.own[kept]
        self.gains = self.gains[kept][:, kept]
        j -= int(j > k)
        statistics = self.ascent.unit.statistics(self.sums[j : j + 1], self.ascent.n_rows)
        self.own[j] = statistics.evidence(self.ascent.hyper)[0]
        self._fill(j)
        return self.sums

    def _fill(self, j: int) -> None:
        """The gains of merging j with each other component, the weights' part left out."""
        r = self.responsibility
        both = r + r[:, j : j + 1]
        lost = (torch.xlogy(r, r) + torch.xlogy(r[:, j : j + 1], r[:, j : j + 1]) - torch.xlogy(both, both)).sum(0)
        statistics = self.ascent.unit.statistics(self.sums + self.sums[j], self.ascent.n_rows)
        gain = statistics.evidence(self.ascent.hyper) - self.own - self.own[j] + self.weight * lost.double()
        gain[j] = -math.inf
        self.gains[j], self.gains[:, j] = gain, gain


def _features(u: Tensor) -> Tensor:
    """(1, u, upper triangle of u u^T): (R, D) -> (R, F)."""
    return features(u, "full").T


def _order(n_rows: int, n_draws: int, generator: Generator) -> Iterator[Tensor]:
    """Row numbers of each iteration's draws: every row has its turn before any has another."""
    waiting = torch.empty(0, dtype=torch.long)
    while True:
        while len(waiting) < n_draws:
            waiting = torch.cat((waiting, torch.randperm(n_rows, generator=generator)))
        yield waiting[:n_draws]
        waiting = waiting[n_draws:]


def _sums(u: Tensor, responsibility: Tensor) -> Tensor:
    """Mean over draws of responsibility times features: (K, F), float64."""
    total = torch.zeros((), dtype=torch.float64)
    for block, r in zip(u.split(BLOCK), responsibility.split(BLOCK), strict=True):
        total = total + (r.T @ _features(block)).double()
    return total / len(u)
