"""Guards of a fitted prior r: what a good density on held-out codes does not say.

Distances are Euclidean, between draws of q(z given x) and draws of r, in codes divided by their standard deviation
per coordinate: a unit on another scale must not decide alone. Under r = q(z) every share has an expected value of
1 % (plus 1 / rows), whatever q(z) is; no fitted prior is q(z), so a guard fails where a share is *significantly above
5 %* (and above what the prior that is replaced has). In many dimensions all distances are alike, and a guard that
passes says less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor, nn

from latentfit.errors import InputError
from latentfit.evaluation.codes import Codes
from latentfit.evaluation.estimate import Estimate
from latentfit.evaluation.ladder import split_rows
from latentfit.evaluation.neighbours import nearest
from latentfit.evaluation.rows import frozen
from latentfit.model.contracts import Prior
from latentfit.priors import DefensiveMixture, ExternalPrior, FlowPrior

#: the tail of the distances of rows that are right, and the share beyond it that is too much
TAIL = 0.01
LARGEST_SHARE = 0.05
#: samples nearer to the training codes than half of what held-out codes are, at the median, are copies
SMALLEST_RATIO = 0.5
#: round-trip errors that nobody would see, in standard deviations of the codes: almost everywhere, and at worst
LARGEST_USUAL_ERROR, LARGEST_ERROR = 1e-3, 1e-2


@dataclass(frozen=True)
class Memorisation:
    """Whether r's samples are copies of training codes.

    Attributes:
        ratio: median distance of r's samples to the nearest training code over that of held-out codes: 1 where
            r is q(z), 0 for copies.
        copied: share of samples nearer to a training code than 99 % of held-out codes are; 1 % where r is q(z).
    """

    ratio: Estimate
    copied: Estimate

    @property
    def ok(self) -> bool:
        """The ratio is not significantly below a half, nor the share significantly above 5 %."""
        return not self.ratio.interval[1] < SMALLEST_RATIO and not self.copied.interval[0] > LARGEST_SHARE


@dataclass(frozen=True)
class Strays:
    """Points of one cloud, r's samples or held-out codes, where the other has none.

    Attributes:
        share: of points farther from the other cloud than 99 % of that cloud's own points are; 1 % where r is q(z).
        threshold: that distance, in standard deviations of the codes.
        limit: the share that is too much: 5 %, or what the prior replaced has, if that is more.
    """

    share: Estimate
    threshold: float
    limit: float = LARGEST_SHARE

    @property
    def ok(self) -> bool:
        """The share is not significantly above the limit."""
        return not self.share.interval[0] > self.limit


@dataclass(frozen=True)
class InverseError:
    """Round trips f^{-1}(f(z)) of a flow: the largest coordinate's error, in standard deviations of the codes.

    Attributes:
        codes, samples: 99.9 % quantile over held-out codes, and over r's own samples.
        codes_max, samples_max: the largest.
    """

    codes: float
    codes_max: float
    samples: float
    samples_max: float

    @property
    def ok(self) -> bool:
        """At most 0.001 in 99.9 % of latents, and 0.01 at worst."""
        usual, worst = max(self.codes, self.samples), max(self.codes_max, self.samples_max)
        return usual <= LARGEST_USUAL_ERROR and worst <= LARGEST_ERROR  # False for nan


@dataclass(frozen=True)
class FiniteGradients:
    """Whether log r and its gradient are finite far out.

    Attributes:
        share: of latents at that radius where both are.
        radius: |z|.
    """

    share: float
    radius: float

    @property
    def ok(self) -> bool:
        """Everywhere."""
        return self.share == 1


def memorisation(
    r: Prior, codes_train: Codes, codes_test: Codes, *, n_max: int = 2000, random_state: int = 0
) -> Memorisation:
    """Distances of r's samples to the nearest training code mean, beside those of held-out codes.

    Given the training codes both are i.i.d., so that under r = q(z) the ratio of medians is 1 up to its interval
    (measured with 1,000 held-out codes, within 10 % in 2 dimensions, 3 % in 8, 1 % in 40): a half is out of reach of
    chance, and of a smooth prior that fits a little too tightly. A prior that copies one sample in ten leaves the
    medians alone, and shows in the share. Where q's own spread exceeds the distances between codes, a copy with that
    spread is no copy: it cannot be told from q(z).

    Args:
        r: a fitted prior.
        codes_train: those it was fitted on, all of them: a copy of a row left out would go unnoticed.
        codes_test: of other rows; unrelated to the training rows, or copies are no news.
        n_max: held-out codes and samples at most; the cost is n_max times the training codes.
        random_state: seed.

    Raises:
        InputError: fewer than 4 held-out codes.
    """
    scale = _Scale(codes_train)
    chosen = _some(len(codes_test), n_max, random_state)
    if len(chosen) < 4:
        raise InputError(f"memorisation: {len(chosen)} held-out codes; at least 4 are needed.")
    test = codes_test[chosen]
    known = scale(codes_train.mean)
    of_test = nearest(scale(_draws(test, random_state)), known)[0][:, 0].cpu().double().numpy()
    samples = _samples(r, test, min(n_max, 2000), random_state)
    of_samples = nearest(scale(samples), known)[0][:, 0].cpu().double().numpy()
    low = float(np.quantile(of_test, TAIL, method="lower"))
    return Memorisation(_median_ratio(of_samples, of_test), _share(of_samples < low, len(of_test)))


def bridges(r: Prior, codes: Codes, *, p: Prior | None = None, n_max: int = 10_000, random_state: int = 0) -> Strays:
    """Share of r's samples in places without codes: between modes, or around them.

    Held-out codes are halved. The distances of one half to the nearest code of the other give the threshold (99 %
    quantile); r's samples are held against the same other half. Under r = q(z) both are alike.

    Args:
        r: a fitted prior.
        codes: of rows it was not fitted on; `codes.groups` stay in one half together.
        p: the prior that r would replace. A single Gaussian that only recentres p bridges as p does: it is then no
            fault of r.
        n_max: codes at most, and half as many samples.
        random_state: seed.

    Raises:
        InputError: fewer than 4 codes or groups.
    """
    own = None if p is None else _Clouds(p, codes, n_max, random_state)
    return _bridges(_Clouds(r, codes, n_max, random_state), own)


def uncovered(r: Prior, codes: Codes, *, p: Prior | None = None, n_max: int = 10_000, random_state: int = 0) -> Strays:
    """Share of held-out codes in places without samples of r: modes that it misses.

    `bridges` with the parts exchanged: r's samples are halved, one half's distances to the other give the threshold
    (99 % quantile), and held-out codes are held against that other half.

    Args:
        r: a fitted prior.
        codes: of rows it was not fitted on; `codes.groups` makes the error cluster-robust.
        p: the prior that r would replace: what it misses as well is no fault of r.
        n_max: codes at most, and half as many samples in each half.
        random_state: seed.

    Raises:
        InputError: fewer than 4 codes or groups.
    """
    own = None if p is None else _Clouds(p, codes, n_max, random_state)
    return _uncovered(_Clouds(r, codes, n_max, random_state), own)


@torch.no_grad()
def inverse_error(r: Prior, codes: Codes, *, n_max: int = 10_000, random_state: int = 0) -> InverseError | None:
    """Round-trip errors of a flow on held-out codes and on its own samples, in the dtype it has.

    Where the map loses digits, the density and the samples are of different distributions.

    Args:
        r: a prior with a `round_trip`, as all flows have, or a defensive mixture of one.
        codes: held out.
        n_max: codes at most, and samples.
        random_state: seed.

    Returns:
        None for priors without a map.
    """
    prior = r
    while isinstance(prior, DefensiveMixture):
        prior = prior.base if prior.weight else prior.anchor
    if not isinstance(prior, FlowPrior | ExternalPrior) or not prior.invertible:
        return None
    held_out = codes[_some(len(codes), n_max, random_state)]
    scale = _Scale(codes)
    like = next(prior.parameters())
    given = held_out.context if getattr(prior, "context_features", 0) else None
    given = None if given is None else given.to(like)
    found: list[float] = []
    with frozen(prior):
        for z in (_draws(held_out, random_state), _samples(prior, held_out, len(held_out), random_state)):
            z = z.to(like)
            error = (scale(prior.round_trip(z, given)) - scale(z)).abs().amax(-1).double().cpu()
            found += [float(torch.quantile(error, 0.999)), float(error.max())]
    return InverseError(*found)


def finite_gradients(r: Prior, *, radius: float = 1e6, n: int = 256, random_state: int = 0) -> FiniteGradients | None:
    """Whether log r and its gradient by z are finite at |z| = `radius`, in n random directions.

    An encoder that is trained on against r may wander off; one gradient that is not finite ends the training.

    Returns:
        None for priors without a density.
    """
    if r.density == "none":
        return None
    features = getattr(r, "context_features", 0)
    generator = torch.Generator().manual_seed(random_state)
    direction = torch.randn(n, r.event_shape.numel(), generator=generator)
    z = (radius * nn.functional.normalize(direction, dim=-1)).view(n, *r.event_shape)
    like = next((t for t in (*r.parameters(), *r.buffers()) if t.is_floating_point()), z)
    z = z.to(like).requires_grad_()
    context = torch.zeros(n, features).to(like) if features else None
    with torch.enable_grad(), frozen(r, random_state=random_state):
        log_prob = r.log_prob(z, context)
        (gradient,) = torch.autograd.grad(log_prob.sum(), z)
    finite = torch.isfinite(log_prob) & torch.isfinite(gradient.flatten(1)).all(-1)
    return FiniteGradients(float(finite.double().mean()), radius)


def check_prior(
    r: Prior, codes_train: Codes, codes_test: Codes, *, p: Prior | None = None, random_state: int = 0
) -> dict[str, tuple[bool, dict[str, float]]]:
    """All guards that apply: name -> (passed, its numbers); with p, the prior replaced, as in `bridges`.

    Raises:
        InputError: fewer than 4 held-out codes or groups.
    """
    clouds = _Clouds(r, codes_test, 10_000, random_state)
    own = None if p is None else _Clouds(p, codes_test, 10_000, random_state)
    found: dict[str, Memorisation | Strays | InverseError | FiniteGradients | None] = {
        "memorisation": memorisation(r, codes_train, codes_test, random_state=random_state),
        "bridges": _bridges(clouds, own),
        "uncovered": _uncovered(clouds, own),
        "inverse_error": inverse_error(r, codes_test, random_state=random_state),
        "finite_gradients": finite_gradients(r, random_state=random_state),
    }
    return {
        name: (guard.ok, {key.name: float(getattr(guard, key.name)) for key in fields(guard)})
        for name, guard in found.items()
        if guard is not None
    }


class _Scale:
    """Latents as rows (N, D) in standard deviations of q(z) per coordinate."""

    def __init__(self, codes: Codes) -> None:
        std = (codes.mean.flatten(1).var(0) + codes.std.flatten(1).square().mean(0)).sqrt().double()
        # a coordinate without any spread cannot be scaled by it
        self.std = torch.where(std > 1e-6 * std.max(), std, std.max()).clamp(min=1e-30)

    def __call__(self, z: Tensor) -> Tensor:
        return z.flatten(1) / self.std.to(z)


class _Clouds:
    """Two disjoint halves of held-out draws and two independent sets of r's samples, all in one scale."""

    def __init__(self, r: Prior, codes: Codes, n_max: int, random_state: int) -> None:
        codes = codes[_some(len(codes), n_max, random_state)]
        first, second = split_rows(len(codes), codes.groups, 0.5, random_state)
        scale, draws = _Scale(codes), _draws(codes, random_state)
        self.codes_a, self.codes_b = scale(draws[first]), scale(draws[second])
        n = len(codes) // 2
        samples = scale(_samples(r, codes, 2 * n, random_state).to(draws))
        self.samples_a, self.samples_b = samples[:n], samples[n:]
        self.groups_b = None if codes.groups is None else codes.groups[second]


def _bridges(clouds: _Clouds, replaced: _Clouds | None = None) -> Strays:
    own, asked = (_distance(z, clouds.codes_a) for z in (clouds.codes_b, clouds.samples_b))
    return _strays(own, asked, None, None if replaced is None else _bridges(replaced))


def _uncovered(clouds: _Clouds, replaced: _Clouds | None = None) -> Strays:
    own, asked = (_distance(z, clouds.samples_a) for z in (clouds.samples_b, clouds.codes_b))
    return _strays(own, asked, clouds.groups_b, None if replaced is None else _uncovered(replaced))


def _strays(own: np.ndarray, asked: np.ndarray, groups: np.ndarray | None, replaced: Strays | None) -> Strays:
    threshold = float(np.quantile(own, 1 - TAIL, method="higher"))
    limit = LARGEST_SHARE if replaced is None else max(LARGEST_SHARE, replaced.share.interval[1])
    return Strays(_share(asked > threshold, len(own), groups), threshold, limit)


def _distance(queries: Tensor, points: Tensor) -> np.ndarray:
    return nearest(queries, points)[0][:, 0].cpu().double().numpy()


def _share(beyond: np.ndarray, n_threshold: int, groups: np.ndarray | None = None) -> Estimate:
    """The share beyond a quantile that was itself estimated from `n_threshold` rows: their errors add."""
    share = float(beyond.mean())
    error = math.hypot(Estimate.of(beyond, groups=groups).std_error, math.sqrt(TAIL * (1 - TAIL) / n_threshold))
    low, high = Estimate.from_error(share, error).interval
    return Estimate(share, error, (max(0.0, low), min(1.0, high)))


def _median_ratio(above: np.ndarray, below: np.ndarray) -> Estimate:
    """median(above) / median(below) of independent samples, with the medians' errors from order statistics."""
    (numerator, numerator_error), (denominator, denominator_error) = _median(above), _median(below)
    if denominator == 0:
        return Estimate.from_error(math.nan, math.nan)
    ratio = numerator / denominator
    return Estimate.from_error(ratio, math.hypot(numerator_error, ratio * denominator_error) / denominator)


def _median(values: np.ndarray) -> tuple[float, float]:
    """Median and its error: a quarter of the two-sigma interval between order statistics (Woodruff 1952)."""
    half = 1 / math.sqrt(len(values))
    low, middle, high = np.quantile(values, [max(0.0, 0.5 - half), 0.5, min(1.0, 0.5 + half)])
    return float(middle), float(high - low) / 4


def _some(n: int, n_max: int, random_state: int) -> np.ndarray:
    """At most n_max of n row numbers, in order."""
    return np.sort(np.random.default_rng(random_state).permutation(n)[:n_max])


def _draws(codes: Codes, random_state: int) -> Tensor:
    """One draw of z per row: (N, *event_shape)."""
    return codes.sample(1, torch.Generator(device=codes.mean.device).manual_seed(random_state))[0]


@torch.no_grad()
def _samples(r: Prior, codes: Codes, n: int, random_state: int) -> Tensor:
    """n draws of r, where it is conditional under the rows' contexts in turn: (n, *event_shape)."""
    device = next((t.device for t in (*r.parameters(), *r.buffers())), codes.mean.device)
    # not the seed of the codes' own draws: the same noise would make samples and codes alike
    generator = torch.Generator(device=device).manual_seed(random_state + 1)
    context = None if codes.context is None else codes.context[torch.arange(n) % len(codes)].to(device)
    with frozen(r, random_state=random_state + 1):
        return r.sample(n, context, generator).to(codes.mean)
