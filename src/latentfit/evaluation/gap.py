"""The prior gap T(r): nats per row that a prior r wins over p on rows it has not seen."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from latentfit.errors import CapabilityError, InputError
from latentfit.evaluation.codes import Codes
from latentfit.evaluation.estimate import Estimate
from latentfit.evaluation.rows import blocks, frozen, to_numpy
from latentfit.model.contracts import LOG_2PI, RANKABLE, Prior
from latentfit.priors.standard import StandardNormalPrior

#: latents scored at once
BLOCK_LATENTS = 8_192
#: the largest weight of a fitted prior in a defensive mixture
LARGEST_WEIGHT = 0.99


def prior_gap(
    r: Prior, p: Prior, codes: Codes, *, n_draws: int = 4, random_state: int = 0, level: float = 0.95
) -> Estimate:
    r"""T(r) = mean over rows of log r(z) - log p(z), z ~ q(z given x): nats per row.

    On rows disjoint from those r was fitted on it is unbiased for KL(q(z) || p) - KL(q(z) || r), hence a
    lower bound on the mismatch KL(q(z) || p), and it is the held-out ELBO gained by putting r in p's place. An r whose
    density is only unbiased (two stages) makes it smaller, E log of an estimate being at most the log: still "at
    least". Such a p would make it larger, so p's must be exact.

    Args:
        r: the prior tried, fitted on other rows.
        p: the prior it would replace.
        codes: of the rows judged; `codes.groups` makes the error cluster-robust.
        n_draws: draws of z per row, averaged; rows, not draws, are what the error counts.
        random_state: seed; the same draws for every r.
        level: of the interval.

    Returns:
        The mean with its interval over rows; `prior_gap_per_row` gives the rows.

    Raises:
        CapabilityError: a p without an exact density, an r without an exact or unbiased one.
    """
    values = prior_gap_per_row(r, p, codes, n_draws=n_draws, random_state=random_state)
    return Estimate.of(values, groups=codes.groups, level=level)


def prior_gap_per_row(r: Prior, p: Prior, codes: Codes, *, n_draws: int = 4, random_state: int = 0) -> np.ndarray:
    """log r(z) - log p(z) of each row, averaged over its draws: (N,), nats."""
    return log_ratios(r, p, codes, n_draws=n_draws, random_state=random_state).mean(0)


def kl_per_row(p: Prior, codes: Codes, *, n_draws: int = 4, random_state: int = 0) -> np.ndarray:
    """KL(q(z given x) || p) of each row: (N,), nats.

    Closed against N(0, I); against another p what that wins over N(0, I), by draws of z, is taken off.

    Raises:
        CapabilityError: a p that has no density.
    """
    closed = to_numpy(codes.kl_to_standard_normal())
    if type(p) is StandardNormalPrior:
        return closed
    normal = StandardNormalPrior(codes.mean.shape[1:]).to(codes.mean)
    return closed - prior_gap_per_row(p, normal, codes, n_draws=n_draws, random_state=random_state)


def log_ratios(r: Prior, p: Prior, codes: Codes, *, n_draws: int, random_state: int) -> np.ndarray:
    """log r(z) - log p(z) of draws z ~ q(z given x): (n_draws, N), nats."""
    if n_draws < 1:
        raise InputError(f"n_draws must be at least 1, got {n_draws}.")
    require_exact(p)
    require_bound(r)
    generator = torch.Generator(device=codes.mean.device).manual_seed(random_state)
    ratios = [
        density_of(r, z[None], codes.context, random_state + draw) - density_of(p, z[None], codes.context)
        for draw, z in enumerate(codes.draws(n_draws, generator))
    ]
    return to_numpy(torch.cat(ratios))


def require_exact(prior: Prior) -> None:
    """T needs exact densities: a noisy one has no certificate, only a comparison by log p(x).

    Raises:
        CapabilityError: with the reason.
    """
    if prior.density != "exact":
        name = prior.name or type(prior).__name__
        if prior.density == "none":
            raise CapabilityError(
                f"The prior gap needs exact densities; {name!r} has none, and no log p(x). Compare the codes and "
                "its draws instead: latentfit.evaluation.classifier_test."
            )
        raise CapabilityError(
            f"The prior gap needs exact densities; that of {name!r} is {prior.density!r}. Compare by log p(x) instead."
        )


def require_bound(prior: Prior) -> None:
    """Refuse densities that may come out too large: with them a gap would not be "at least".

    Raises:
        CapabilityError: with the reason.
    """
    if prior.density not in RANKABLE:
        name = prior.name or type(prior).__name__
        raise CapabilityError(
            f"The prior gap needs an exact or an unbiased density; that of {name!r} is {prior.density!r}, which may "
            "come out too large. Compare by sample quality instead."
        )


@torch.inference_mode()
def density_of(prior: Prior, z: Tensor, context: Tensor | None = None, random_state: int = 0) -> Tensor:
    """log prior(z) in blocks of rows: z (S, N, *event_shape) -> (S, N), float64; the seed is for noisy densities."""
    device = next((t.device for t in (*prior.parameters(), *prior.buffers())), z.device)
    parts = []
    with frozen(prior, random_state=random_state):
        for rows in blocks(z.shape[1], max(1, BLOCK_LATENTS // z.shape[0])):
            given = None if context is None else context[rows].to(device)
            parts.append(prior.log_prob(z[:, rows].to(device), given).double())
    return torch.cat(parts, dim=1)


def defensive_weight(r: Prior, p: Prior, codes: Codes, *, n_draws: int = 8, random_state: int = 0) -> float:
    r"""The w in [0, 0.99] with the largest mean of log(w r + (1 - w) p) on validation rows; 0 if none wins.

    The mean is concave in w, so golden-section search finds its maximum. Rows must be neither those r was
    fitted on nor those the gap is reported on.

    Raises:
        CapabilityError: see `prior_gap`.
    """
    ratio = log_ratios(r, p, codes, n_draws=n_draws, random_state=random_state).ravel()

    def gain(w: float) -> float:
        return 0.0 if w == 0 else float(np.logaddexp(math.log1p(-w), math.log(w) + ratio).mean())

    golden = (math.sqrt(5) - 1) / 2
    low, high = 0.0, LARGEST_WEIGHT
    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left, at_right = gain(left), gain(right)
    while high - low > 1e-4:
        if at_left >= at_right:
            high, right, at_right = right, left, at_left
            left = high - golden * (high - low)
            at_left = gain(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + golden * (high - low)
            at_right = gain(right)
    # the maximum may lie on the border, which golden section only approaches
    return max((0.0, LARGEST_WEIGHT, (low + high) / 2), key=gain)


@dataclass(frozen=True, slots=True)
class PlugIn:
    """KL(q_N || p) of the mixture q_N over the given rows: biased upward, never to be ranked by.

    Attributes:
        value: nats per row.
        mean_kl: mean KL(q(z given x) || p), nats per row.
        mutual_information: mean_kl - value, which can never exceed log N.
        log_n: log of the number of rows.
    """

    value: float
    mean_kl: float
    mutual_information: float
    log_n: float

    @property
    def saturated(self) -> bool:
        """Whether the mean KL exceeds log N - 1: it then says how few rows there are, not what p costs."""
        return self.mean_kl > self.log_n - 1


def plug_in_mismatch(codes: Codes, p: Prior, *, random_state: int = 0) -> PlugIn:
    r"""KL(q_N || p), q_N = 1/N sum_n q(z given x_n), by one draw per row and the exact mixture, in blocks.

    It equals mean KL minus a mutual information that is capped at log N (Hoffman & Johnson 2016), so it is
    far too large where the mean KL exceeds log N: shown only with `saturated`, never ranked.

    Raises:
        CapabilityError: codes that are no diagonal Gaussians, or an inexact density.
    """
    require_exact(p)
    if codes.scale_tril is not None or codes.stored is not None:
        raise CapabilityError(
            "plug_in_mismatch needs diagonal Gaussian codes; use prior_gap, which needs no such thing."
        )
    z = codes.sample(1, torch.Generator(device=codes.mean.device).manual_seed(random_state))
    log_p = density_of(p, z, codes.context)[0]
    mean, std = codes.mean.flatten(1).double(), codes.std.flatten(1).double()
    centre = mean.mean(0)  # far from 0 the squares would leave no digits
    flat, mean = z[0].flatten(1).double() - centre, mean - centre  # (N, D)
    log_q_own = -(0.5 * ((flat - mean) / std).square() + std.log() + 0.5 * LOG_2PI).sum(-1)
    log_q_all = torch.cat([mixture_log_prob(flat[rows], mean, std) for rows in blocks(len(flat), 1024)])
    value = float((log_q_all - log_p).mean())
    mean_kl = float((log_q_own - log_p).mean())
    return PlugIn(value, mean_kl, mean_kl - value, math.log(len(codes)))


def mixture_log_prob(z: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """log of the equal-weight mixture of N(mean_n, std_n^2): z (B, D), mean and std (N, D) -> (B,)."""
    precision = std.square().reciprocal()
    # |(z - m) / s|^2 by matrix products: no (B, N, D) tensor; float64, because the terms cancel
    energy = z.square() @ precision.T - 2 * z @ (mean * precision).T + (mean.square() * precision).sum(-1)
    log_q = -0.5 * energy - std.log().sum(-1) - 0.5 * z.shape[1] * LOG_2PI
    return log_q.logsumexp(1) - math.log(len(mean))


def gap_by_group(
    per_row: ArrayLike, labels: ArrayLike, *, groups: ArrayLike | None = None, level: float = 0.95
) -> dict[str, tuple[int, Estimate]]:
    """T of each group: label -> (rows, mean of T over its rows), sorted by label.

    The intervals hold for all K groups at once (Bonferroni: each at 1 - (1 - level) / K), since the group that is
    looked at is the one that stands out. Their mean weighted by rows is T itself. A group's T says what p costs on
    its rows under a prior shared by all, not what a prior of its own would win.

    Args:
        per_row: (N,) T of each row (`prior_gap_per_row`, `Rung.per_row`), nats.
        labels: (N,), of any sortable kind.
        groups: (N,) labels of related rows within the groups, for cluster-robust errors.
        level: of the intervals together.

    Returns:
        A group of one row has no error (nan).

    Raises:
        InputError: numbers of labels that do not fit.
    """
    values, label = np.asarray(per_row, dtype=np.float64), np.asarray(labels)
    related = None if groups is None else np.asarray(groups)
    if label.shape != values.shape or (related is not None and related.shape != values.shape):
        shapes = f"{label.shape}" + ("" if related is None else f" and {related.shape}")
        raise InputError(f"gap_by_group: {values.shape} gaps, but labels of shape {shapes}; give one for each row.")
    names = np.unique(label)
    table = {}
    for name in names:
        rows = label == name
        inside = None if related is None else related[rows]
        wide = Estimate.of(values[rows], groups=inside, level=1 - (1 - level) / len(names))
        table[str(name)] = (int(rows.sum()), Estimate(wide.value, wide.std_error, wide.interval, level))
    return table
