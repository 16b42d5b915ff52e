"""EM for a mixture of Gaussians, on rows that are themselves Gaussians.

In coordinates with mean 0 and variance 1 a component is one row of natural parameters: log w_k N(z; m_k, C_k) =
theta_k . f(z), with f(z) = (1, z, z z^T). Hence the E step is one matrix product of f(z) with theta, and the M
step's statistics are one of the responsibilities with f(z). Numbers of components are compared after a fifth of the
iterations, on some draws each; the one that is kept goes on with all rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Generator, Tensor

from latentfit.errors import InputError
from latentfit.model.contracts import LOG_2PI
from latentfit.model.rows import CodeRows
from latentfit.priors.components import LEAST_LOG
from latentfit.priors.gaussians import log_mixture
from latentfit.priors.k_means import k_means
from latentfit.priors.moments import moments

Covariance = Literal["full", "diagonal"]

#: numbers of components that "auto" tries, in this order, until two in a row win nothing
CANDIDATES = (1, 3, 10, 30, 100)
#: draws of an iteration: this many per number that describes a component, within these bounds
DRAWS_PER_NUMBER, FEWEST_DRAWS, MOST_DRAWS = 5, 2_000, 10_000
#: rows whose features are in memory at once: 3 MB of them in 40 dimensions, which about fit the cache
BLOCK = 800
#: share of the iterations that number of components and start are found with, and draws of any iteration, at most
SEARCH, MOST_ROWS = 0.2, 60_000
#: rows held out, at most: the paired difference of two mixtures then has an error of hundredths of a nat
MOST_HELD_OUT = 5_000
#: floor of every variance, in units of the data's
FLOOR = 1e-4
#: uncorrelated rows in a full covariance, per dimension: with 1 a thousand rows are fitted 0.2 nats better in 40
#: dimensions and 20,000 rows 0.7 nats worse
PRIOR_ROWS = 0.2
#: a coordinate this far from a Gaussian counts fully in the start: two sharp modes are at 0.41
FARTHEST = 0.4
#: weight of an iteration in the running statistics, at least
LEAST_STEP = 0.05
#: largest coordinate at which float32 features keep a variance of `FLOOR`
FAR = 30.0
#: iterations between looks at the held-out rows, and how many without another `ENOUGH` nats end a fit
EVERY, PATIENCE, ENOUGH = 3, 2, 5e-3


@dataclass(frozen=True, slots=True, eq=False)
class MixtureFit:
    """log_weight (K,), mean (K, D), factor W_k (K, D, D) or its diagonal (K, D), held-out nats per row."""

    log_weight: Tensor
    mean: Tensor
    factor: Tensor
    validation: float = -math.inf

    @property
    def covariance(self) -> Covariance:
        """Of what kind the factors are."""
        return "diagonal" if self.factor.dim() == 2 else "full"

    def log_prob(self, z: Tensor) -> Tensor:
        """(R, D) -> (R,)."""
        return log_mixture(z, self.log_weight.to(z), self.mean.to(z), self.factor.to(z))

    def natural(self) -> Tensor:
        """theta (K, F), see `features`."""
        if self.factor.dim() == 2:
            precision = self.factor.square()
            linear = precision * self.mean
            quadratic = -0.5 * precision
            log_det = self.factor.log().sum(-1)
        else:
            precision = self.factor.mT @ self.factor
            linear = (precision @ self.mean.unsqueeze(-1)).squeeze(-1)
            row, column = torch.triu_indices(self.mean.shape[1], self.mean.shape[1])
            # z_i z_j stands once in the features and twice in the quadratic form
            quadratic = -torch.where(row == column, 0.5, 1.0) * precision[:, row, column]
            log_det = self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        dim = self.mean.shape[1]
        constant = self.log_weight + log_det - 0.5 * (dim * LOG_2PI + (linear * self.mean).sum(-1))
        return torch.cat((constant.unsqueeze(-1), linear, quadratic), 1)


@dataclass(frozen=True, slots=True)
class _Unit:
    """Rows in coordinates of mean 0 and variance 1; `index` names those of this part, so that none is copied."""

    rows: CodeRows
    centre: Tensor
    scale: Tensor
    index: Tensor
    dtype: torch.dtype

    def __len__(self) -> int:
        return len(self.index)

    def draw(self, n: int, generator: Generator) -> Tensor:
        """n draws, each row's turn coming before any has another: (n, D), as the rows lie and not in random order."""
        rounds, rest = divmod(n, len(self))
        picked = [self.index] * rounds
        if rest:  # reading in order takes a quarter of the time
            picked.append(self.index[torch.randperm(len(self), generator=generator)[:rest].sort().values])
        return self.draws_of(torch.cat(picked), generator)

    def draws_of(self, index: Tensor, generator: Generator) -> Tensor:
        """One draw of each of some rows: (R, D)."""
        rows = self.rows[index.to(self.rows.mean.device)].to("cpu", self.centre.dtype)  # a copy, so it may be changed
        z = rows.mean.sub_(self.centre).add_(rows.noise(generator)).div_(self.scale)
        return z.to(self.dtype)


def fit_mixture(
    rows: CodeRows,
    n_components: int | Literal["auto"],
    covariance: Covariance,
    *,
    max_iterations: int,
    random_state: int,
    progress: Callable[[int, int], None] | None = None,
) -> MixtureFit:
    """The best mixture on held-out rows, in the units of the rows."""
    generator = torch.Generator().manual_seed(random_state)
    train, held_out = _parts(rows, generator)
    dim = rows.mean.shape[1]
    n_held_out = len(held_out)
    validation = torch.cat(
        [held_out.draws_of(held_out.index, generator) for _ in range(math.ceil(FEWEST_DRAWS / n_held_out))]
    )
    numbers = candidates(len(train), dim, covariance) if n_components == "auto" else [n_components]
    if max(numbers) > len(train):
        raise InputError(
            f"{max(numbers)} components need at least as many rows to fit, got {len(train)} "
            "(and one in ten held out); lower n_components or set it to 'auto'."
        )
    first = math.ceil(SEARCH * max_iterations)
    total = first * len(numbers) + max_iterations

    def tick(done: int) -> Callable[[int], None] | None:
        return None if progress is None else lambda step: progress(done + step, total)

    fits: list[MixtureFit] = []
    for i, number in enumerate(numbers):
        fits.append(from_k_means(train, validation, number, covariance, first, generator, tick(i * first)))
        if len(fits) > 2 and fits.index(max(fits, key=_score)) < len(fits) - 2:
            break
    best = smallest_that_suffices(fits, validation, n_held_out)
    everything = min(max(len(train), FEWEST_DRAWS), MOST_ROWS)
    done, left = first * len(numbers), max_iterations
    if len(best.mean) > 1:
        # parts of the rows settle too early, a quarter of a nat short in 40 dimensions, and so does an unlucky start
        again = from_k_means(
            train, validation, len(best.mean), covariance, first, generator, tick(done), draws=everything
        )
        best, done, left = max(best, again, key=_score), done + first, left - first
    best = expectation_maximisation(best, train, validation, everything, left, generator, tick(done))
    if progress is not None:
        progress(total, total)
    scale = train.scale.double()
    return MixtureFit(
        best.log_weight,
        train.centre.double() + best.mean * scale,
        best.factor / scale,  # columns of W_k, or its diagonal
        best.log_prob(validation).mean().item() - scale.log().sum().item(),
    )


def smallest_that_suffices(fits: list[MixtureFit], held_out: Tensor, n_rows: int) -> MixtureFit:
    """The first fit within one standard error (of the paired difference over rows) of the best one.

    The best iterate of many components wins by chance where nothing is to be won. `held_out` (S n_rows, D)
    holds S draws of each row.
    """
    best = max(fits, key=_score)
    for fit in fits:
        if fit is best or n_rows < 2:
            break
        lost = (best.log_prob(held_out) - fit.log_prob(held_out)).view(-1, n_rows).mean(0)
        if lost.mean() <= lost.std() / n_rows**0.5:
            return fit
    return best


def candidates(n_rows: int, dim: int, covariance: Covariance) -> list[int]:
    """Numbers of components worth trying: about 5 D rows for each full one, 20 for each diagonal one.

    The most that the rows allow is among them where it is half as many again as the last: 9 may win what 3 do not.
    """
    most = min(CANDIDATES[-1], n_rows // (5 * dim if covariance == "full" else 20))
    numbers = [k for k in CANDIDATES if k == 1 or k <= most]
    return [*numbers, most] if most >= 1.5 * numbers[-1] else numbers


def from_k_means(
    train: _Unit,
    held_out: Tensor,
    n_components: int,
    covariance: Covariance,
    max_iterations: int,
    generator: Generator,
    progress: Callable[[int], None] | None = None,
    *,
    draws: int | None = None,
) -> MixtureFit:
    """EM from a k-means start, on `draws` draws an iteration: by default as many as the components need."""
    dim = train.rows.mean.shape[1]
    numbers = n_components * (dim if covariance == "full" else 2)
    needed = max(FEWEST_DRAWS, min(MOST_DRAWS, DRAWS_PER_NUMBER * numbers))
    n = min(max(len(train), FEWEST_DRAWS), needed) if draws is None else draws
    z = train.draw(n, generator)
    labels = k_means(z * salience(z), n_components, generator)
    hard = torch.nn.functional.one_hot(labels, n_components).to(z.dtype)
    statistics = torch.zeros(n_components, n_features(dim, covariance), dtype=torch.float64)
    for part, r in zip(z.split(BLOCK), hard.split(BLOCK), strict=True):
        statistics += r.T @ features(part, covariance).T
    start = _maximise(statistics / n, min(n, len(train)), dim, covariance)
    return expectation_maximisation(start, train, held_out, n, max_iterations, generator, progress, revive=True)


def expectation_maximisation(
    fit: MixtureFit,
    train: _Unit,
    held_out: Tensor,
    n: int,
    max_iterations: int,
    generator: Generator,
    progress: Callable[[int], None] | None = None,
    *,
    revive: bool = False,
) -> MixtureFit:
    """Stepwise EM with n draws an iteration; the best iterate on `held_out` (R, D).

    The statistics of an iteration enter a running mean whose memory grows, so that neither the draws' noise nor the
    part of the rows an iteration saw is left in the end. Where every iteration sees the same points, since the rows
    have no spread and n takes each of them in, there is nothing to average: that is EM itself.

    Source: Cappe & Moulines (2009), arXiv:0712.4273.
    """
    dim, covariance = fit.mean.shape[1], fit.covariance
    statistics, seen = torch.zeros(len(fit.mean), n_features(dim, covariance), dtype=torch.float64), math.inf
    best, waited = _scored(fit, held_out), 0
    same = n % len(train) == 0 and not bool(train.rows.std.any())
    z = train.draw(n, generator)
    for t in range(max_iterations):
        if t > 0 and not same:
            z = train.draw(n, generator)
        new, log_density = _expected(fit, z)
        step = 1.0 if same else max((t + 1) ** -0.6, LEAST_STEP)
        statistics = torch.lerp(statistics, new / n, step)
        seen = 1 / ((1 - step) ** 2 / seen + step**2 / n)
        if revive and t < max_iterations // 2:
            _revive(statistics, z, log_density, covariance, generator)
        fit = _maximise(statistics, min(seen, len(train)), dim, covariance)
        if progress is not None:
            progress(t + 1)
        if (t + 1) % EVERY == 0 or t == max_iterations - 1:
            fit = _scored(fit, held_out)
            waited = 0 if fit.validation > best.validation + ENOUGH else waited + 1
            best = max(best, fit, key=_score)
            if waited >= PATIENCE:
                break
    return best


def _expected(fit: MixtureFit, z: Tensor) -> tuple[Tensor, Tensor]:
    """The E step on draws z (R, D): sums of the responsibilities times f(z) (K, F), and the log density (R,)."""
    theta = fit.natural().to(z.dtype)
    new, log_density = torch.zeros_like(theta), []
    memory = theta.new_empty(theta.shape[1], min(BLOCK, len(z)))
    for part in z.split(BLOCK):
        f = features(part, fit.covariance, memory)
        log_joint = theta @ f  # (K, R)
        peak = log_joint.amax(0)
        joint = log_joint.sub_(peak).clamp_min_(LEAST_LOG).exp_()
        total = joint.sum(0)
        log_density.append(peak + total.log())
        new.addmm_(joint.div_(total), f.T)
    return new.double(), torch.cat(log_density)


def n_features(dim: int, covariance: Covariance) -> int:
    """F, the length of f(z)."""
    return 1 + 2 * dim if covariance == "diagonal" else 1 + dim + dim * (dim + 1) // 2


def features(z: Tensor, covariance: Covariance, memory: Tensor | None = None) -> Tensor:
    """f(z) = (1, z, upper triangle of z z^T), of it only the diagonal for "diagonal": (R, D) -> (F, R).

    Rows of z are columns here, so that every product is written once, where it stays. `memory` (F, R or more) is
    written to where given: fresh memory in every block costs more than the products.
    """
    dim, z = z.shape[1], z.T.contiguous()
    f = z.new_empty(n_features(dim, covariance), z.shape[1]) if memory is None else memory[:, : z.shape[1]]
    f[0], f[1 : dim + 1] = 1, z
    if covariance == "diagonal":
        torch.square(z, out=f[dim + 1 :])
        return f
    start = dim + 1
    for i in range(dim):
        torch.mul(z[i:], z[i], out=f[start : start + dim - i])
        start += dim - i
    return f


def salience(z: Tensor) -> Tensor:
    """How far each coordinate is from a Gaussian, by skewness and kurtosis, relative to the farthest: (R, D) -> (D,).

    k-means sees clusters by their share of the variance, and a coordinate with two modes has no more of it than
    any other. Where all are within sampling error the weights are equal.
    """
    u = (z - z.mean(0)) / z.std(0).clamp_min(1e-6)
    skewness, excess = u.pow(3).mean(0), u.pow(4).mean(0) - 3
    distance = (skewness.square() / 6 + excess.square() / 24).sqrt()  # Jarque & Bera (1980)
    distance = distance.clamp(3 / len(z) ** 0.5, FARTHEST)
    return distance / distance.max()


def _parts(rows: CodeRows, generator: Generator) -> tuple[_Unit, _Unit]:
    """Rows to fit on, and one in ten (at most `MOST_HELD_OUT`) held out; under 20 rows both are all of them."""
    centre, variance = moments(rows)
    scale = variance.sqrt()
    scale = scale.clamp_min(1e-6 * scale.max()).clamp_min(1e-30)
    # the rows' own precision, so that subtracting the centre loses nothing
    centre, scale = centre.to(rows.mean.dtype), scale.to(rows.mean.dtype)
    ends = (rows.mean.amax(0).cpu(), rows.mean.amin(0).cpu())
    reach = max((end - centre).abs().div(scale).max().item() for end in ends)
    order = torch.randperm(len(rows), generator=generator)
    n_held_out = 0 if len(rows) < 20 else min(MOST_HELD_OUT, round(0.1 * len(rows)))
    kept, held_out = order[n_held_out:].sort().values, order[:n_held_out].sort().values
    unit = _Unit(rows, centre, scale, kept, torch.float32 if reach < FAR else torch.float64)
    return unit, replace(unit, index=held_out) if n_held_out else unit


def _maximise(statistics: Tensor, n_rows: float, dim: int, covariance: Covariance) -> MixtureFit:
    """Weights, means, floored covariances; full ones as if some uncorrelated rows had been seen too."""
    share, first, second = statistics[:, 0], statistics[:, 1 : dim + 1], statistics[:, dim + 1 :]
    safe = share.clamp_min(1e-12)
    mean = first / safe[:, None]
    log_weight = safe.log() - safe.sum().log()
    if covariance == "diagonal":
        variance = (second / safe[:, None] - mean.square()).clamp_min(0) + FLOOR
        return MixtureFit(log_weight, mean, variance.rsqrt())
    row, column = torch.triu_indices(dim, dim)
    moment = mean.new_zeros(len(mean), dim, dim)
    moment[:, row, column] = moment[:, column, row] = second / safe[:, None]
    scatter = moment - mean[:, :, None] * mean[:, None, :]
    variance = scatter.diagonal(dim1=-2, dim2=-1).clamp_min(0)
    seen = (share * n_rows / (share * n_rows + PRIOR_ROWS * (dim + 1)))[:, None, None]
    identity = torch.eye(dim, dtype=mean.dtype)
    scatter = seen * scatter + (1 - seen) * torch.diag_embed(variance) + FLOOR * identity
    lower = torch.linalg.cholesky(scatter)
    return MixtureFit(log_weight, mean, torch.linalg.solve_triangular(lower, identity.expand_as(lower), upper=False))


def _scored(fit: MixtureFit, held_out: Tensor) -> MixtureFit:
    """With the mean log density of held-out rows (R, D) filled in."""
    theta = fit.natural().to(held_out.dtype)
    memory, parts = theta.new_empty(theta.shape[1], min(BLOCK, len(held_out))), held_out.split(BLOCK)
    total = sum((theta @ features(z, fit.covariance, memory)).logsumexp(0).double().sum().item() for z in parts)
    score = total / len(held_out)
    return replace(fit, validation=score if math.isfinite(score) else -math.inf)


def _score(fit: MixtureFit) -> float:
    return fit.validation


def _revive(statistics: Tensor, z: Tensor, log_density: Tensor, covariance: Covariance, generator: Generator) -> None:
    """Put components with under two rows where the density is poorest, with the average covariance."""
    share, dim = statistics[:, 0], z.shape[1]
    dead = (share * len(z) < 2).nonzero().flatten()
    if not len(dead) or len(dead) == len(share):
        return
    mean = statistics[:, 1 : dim + 1] / share.clamp_min(1e-12)[:, None]
    within = (statistics - share[:, None] * features(mean, covariance).T).sum(0) / share.sum()
    poorest = log_density.topk(max(len(dead), len(z) // 100), largest=False).indices
    places = z[poorest[torch.randperm(len(poorest), generator=generator)[: len(dead)]]].double()
    within[: dim + 1] = 0  # the first two features have no spread of their own
    statistics[dead] = (features(places, covariance).T + within) / len(share)
