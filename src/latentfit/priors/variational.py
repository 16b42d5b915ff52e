"""Variational Bayes for a Dirichlet-process mixture of Gaussians, on rows that are themselves Gaussians.

Coordinate ascent on the bound, with the statistics of stepwise EM (`em.py`) so that rows are redrawn in every
iteration and many rows are seen in parts. It starts from many k-means clusters. Coordinate ascent alone would keep two
halves of one cluster apart for ever, so pairs of components are merged where the bound rises by it. Where clusters
overlap the bound asks for too few, though many predict better: one row in four says whether to merge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from latentfit.model.contracts import LOG_2PI
from latentfit.model.rows import CodeRows
from latentfit.priors import sticks
from latentfit.priors.components import component_log_prob
from latentfit.priors.em import MixtureFit, features, salience
from latentfit.priors.k_means import k_means
from latentfit.priors.moments import moments
from latentfit.priors.normal_wishart import (
    Hyper,
    Statistics,
    divergence,
    expected_constant,
    inverse_factor,
    predictive_log_prob,
)

#: draws of an iteration: one of each row, within these bounds
FEWEST_DRAWS, MOST_DRAWS = 2_000, 10_000
#: rows whose features are in memory at once
BLOCK = 2_000
#: rows of a component of the start, at least
ROWS_EACH = 5
#: share of the rows that choose, and how many of them at most; fewer rows in all are one Gaussian
CHOOSING, MOST_CHOOSING, FEWEST_ROWS = 0.25, 5_000, 50
#: more components must win more than this many standard errors of the paired difference, and this many nats
ERRORS, WORTHWHILE = 2.0, 0.02
#: iterations between looks at the bound; how many looks without another `ENOUGH` nats a row end an ascent
EVERY, PATIENCE, ENOUGH = 5, 2, 1e-3
#: weight of an iteration in the running statistics, at least
LEAST_STEP = 0.05
#: a component with fewer rows is none
EMPTY = 0.5
#: of a unit's variance, what float32 features round
ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Posterior:
    """Counts (K,), largest first; means (K, D); E C (K, D, D); the hyper-prior."""

    n: Tensor
    mean: Tensor
    covariance: Tensor
    hyper: Hyper

    def log_prob(self, z: Tensor, alpha: float) -> Tensor:
        """The predictive: (R, D) -> (R,)."""
        dim, factor = z.shape[1], inverse_factor(self.covariance)
        log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        energy = 2 * (log_det - component_log_prob(z.double(), self.mean, factor)) - dim * LOG_2PI
        joint = predictive_log_prob(energy.clamp_min(0), log_det, self.n, dim, self.hyper)
        return (sticks.log_mean_weights(self.n, alpha) + joint).logsumexp(-1)


@dataclass(frozen=True, slots=True)
class _Coordinates:
    """u = (z - centre) / scale, in which features keep their digits in float32; statistics are of z."""

    rows: CodeRows
    centre: Tensor
    scale: Tensor

    def draw(self, index: Tensor, generator: Generator) -> Tensor:
        """One draw of each of some rows: (R, D), float32."""
        rows = self.rows[index.to(self.rows.mean.device)].to("cpu", self.rows.mean.dtype)
        centre, scale = self.centre.to(rows.mean), self.scale.to(rows.mean)
        return ((rows.mean - centre + rows.noise(generator)) / scale).float()

    def statistics(self, sums: Tensor, n_rows: int) -> Statistics:
        """Of z, from mean features of u per row and component (K, F)."""
        dim = len(self.scale)
        share, first, second = sums[:, 0], sums[:, 1 : dim + 1], sums[:, dim + 1 :]
        mean = first / share.clamp_min(1e-12)[:, None]
        row, column = torch.triu_indices(dim, dim)
        moment = mean.new_zeros(len(mean), dim, dim)
        moment[:, row, column] = moment[:, column, row] = second
        scatter = n_rows * (moment - share[:, None, None] * mean[:, :, None] * mean[:, None, :])
        # float32 features leave the scatter of units that determine each other with negative eigenvalues
        scatter.diagonal(dim1=-2, dim2=-1).add_(n_rows * ROUNDING * share[:, None])
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
    """One component, those left of `truncation` after merges, or all that have rows: the first that suffices.

    Fitted on three rows in four, one that is as good as the best on the others, within their error, suffices; it is
    then fitted on all rows.
    """
    generator = torch.Generator().manual_seed(random_state)
    order = torch.randperm(len(rows), generator=generator).to(rows.mean.device)
    n_choosing = min(MOST_CHOOSING, round(CHOOSING * len(rows)))
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(min(done, 3 * max_iterations), 3 * max_iterations)

    n_merges = 0
    if len(rows) >= FEWEST_ROWS and truncation > 1:
        some, others = rows[order[n_choosing:]], rows[order[:n_choosing]].to("cpu", torch.float64)
        one = _Ascent(some, 1, alpha, generator).posterior()
        many = _Ascent(some, truncation, alpha, generator)
        many.run(max_iterations, tick)
        unmerged = many.posterior()
        many.run(max_iterations, tick, merging=True)
        z = torch.stack([others.draw(generator) for _ in range(math.ceil(FEWEST_DRAWS / n_choosing))])
        found = (one, many.posterior(), unmerged)
        scores = [torch.stack([fit.log_prob(draws, alpha) for draws in z]).mean(0) for fit in found]
        best = max(scores, key=lambda score: score.mean().item())
        for n_merges, score in enumerate(scores):  # noqa: B007
            lost = best - score
            if lost.mean() <= max(WORTHWHILE, ERRORS * lost.std().item() / n_choosing**0.5):
                break
    ascent = _Ascent(rows, truncation if n_merges else 1, alpha, generator)
    if n_merges:
        ascent.run(max_iterations, tick, merging=n_merges == 1)
    if progress is not None:
        progress(3 * max_iterations, 3 * max_iterations)
    return ascent.posterior()


class _Ascent:
    """Running statistics and what they imply, from a k-means start."""

    def __init__(self, rows: CodeRows, n_components: int, alpha: float, generator: Generator) -> None:
        self.alpha, self.n_rows, self.generator = alpha, len(rows), generator
        centre, variance = moments(rows)
        scale = variance.sqrt()
        self.unit = _Coordinates(rows, centre, scale.clamp_min(1e-6 * scale.max()).clamp_min(1e-30))
        self.order = _order(len(rows), min(MOST_DRAWS, max(FEWEST_DRAWS, len(rows))), generator)
        #: the same draws for every look at the bound
        self.judge = u = self.unit.draw(next(self.order), generator)
        k = max(1, min(n_components, len(rows) // ROWS_EACH))
        labels = k_means(u * salience(u), k, generator)
        self.sums = _sums(u, torch.nn.functional.one_hot(labels, k).to(u.dtype))
        self.learn_hyper()

    def run(self, max_iterations: int, tick: Callable[[], None], *, merging: bool = False) -> None:
        """Ascend until the bound rises no more."""
        best, waited = -math.inf, 0
        for t in range(max_iterations):
            responsibility = self.step(t)
            tick()
            if (t + 1) % EVERY:
                continue
            merged = merging and self.merge(responsibility)
            self.learn_hyper()
            bound = self._expect(self.judge)[1]
            waited = 0 if merged or bound > best + ENOUGH else waited + 1
            best = bound if merged else max(best, bound)
            if waited >= PATIENCE or len(self.sums) == 1:
                break

    def learn_hyper(self) -> None:
        """The hyper-prior of largest evidence given the statistics."""
        self.hyper = self.statistics().best_hyper()

    def statistics(self) -> Statistics:
        return self.unit.statistics(self.sums, self.n_rows)

    def posterior(self) -> Posterior:
        self.sums = self.sums[self.sums[:, 0].argsort(descending=True)]
        statistics = self.statistics()
        return Posterior(statistics.n, *statistics.posterior(self.hyper), self.hyper)

    def step(self, t: int) -> Tensor:
        """One iteration on fresh draws: their responsibilities (R, K) at the parameters before it."""
        u = self.unit.draw(next(self.order), self.generator)
        responsibility, _ = self._expect(u)
        self.sums = torch.lerp(self.sums, _sums(u, responsibility), max((t + 1) ** -0.6, LEAST_STEP))
        kept = self.n_rows * self.sums[:, 0] >= EMPTY
        self.sums = self.sums[kept]
        return responsibility[:, kept]

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

    def _expect(self, u: Tensor) -> tuple[Tensor, float]:
        """Responsibilities (R, K) and the bound on log p, nats per row."""
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
    """What merging each pair of components would do to the bound, the responsibilities of the rest unchanged.

    The weights count by the probability of the partition, alpha^K prod (n_k - 1)! up to a constant, not by that of its
    sticks in one order.
    """

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
        n = self.ascent.n_rows * self.sums[:, 0]
        together = (n[:, None] + n).lgamma() - n[:, None].lgamma() - n.lgamma()
        gains = self.gains + together - math.log(self.ascent.alpha)
        first, second = divmod(int(gains.argmax()), len(n))
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
