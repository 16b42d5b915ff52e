"""Prior holes: samples of the prior where the decoder has hardly been trained."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from latentfit.errors import InputError
from latentfit.evaluation.codes import Codes
from latentfit.evaluation.estimate import Estimate, t_quantile
from latentfit.evaluation.gap import density_of, require_bound
from latentfit.evaluation.rows import blocks, frozen, to_numpy
from latentfit.model.contracts import Prior
from latentfit.training import independent_seeds

#: of the interval
LEVEL = 0.95
#: the quantile of log r on held-out codes below which a sample lies in a hole
QUANTILE = 0.01
#: draws of held-out codes at least
FEWEST_CODES = 2_000
#: samples in holes that are kept, to be looked at
EXAMPLES = 3


@dataclass(frozen=True)
class Holes:
    """Share of prior samples in holes of q(z).

    Attributes:
        share: of p's samples below the threshold; 1 % if p were q(z). Its interval heeds the codes' number and groups.
        threshold: the 1 % quantile of log r on held-out codes, nats.
        log_r_codes: (S N,) log r of S draws of each of N held-out codes; several where N is below 2,000.
        log_r_samples: (n,) log r of p's samples.
        examples: (k, *event_shape) the first of p's samples that lie in a hole, in the order they were drawn.
        example_rows: (k,) which of the samples they are.
        n_rows: N.
    """

    share: Estimate
    threshold: float
    log_r_codes: np.ndarray
    log_r_samples: np.ndarray
    examples: Tensor | None = None
    example_rows: np.ndarray | None = None
    n_rows: int = 0


def prior_holes(
    r: Prior, p: Prior, codes: Codes, *, n_samples: int = 5000, context=None, random_state: int = 0
) -> Holes:
    """Share of samples of p whose log r is below the 1 % quantile of log r on held-out codes.

    The interval has two parts: the share at either end of the quantile's own interval, which are order statistics
    whatever the density is, their number divided by the design effect of a row's draws and of groups (Woodruff 1952,
    JASA 47; Korn & Graubard 1998, Survey Methodology 24), and the samples' number; joined as by Zou & Donner (2008),
    Statistics in Medicine 27.

    Args:
        r: a density fitted to q(z), on other rows.
        p: the prior that is sampled from; r itself gives the floor, about 1 % if r is good.
        codes: of held-out rows.
        n_samples: draws of p.
        context: (n_samples, C) for conditional priors.
        random_state: seed.

    Raises:
        CapabilityError: r without an exact or unbiased density.
        InputError: fewer than 2 samples.
    """
    require_bound(r)
    if n_samples < 2:
        raise InputError(f"n_samples must be at least 2, got {n_samples}.")
    device = next((t.device for t in (*p.parameters(), *p.buffers())), codes.mean.device)
    of_samples, of_codes = independent_seeds(random_state, 2)
    generator = torch.Generator(device=device).manual_seed(of_samples)
    with torch.inference_mode(), frozen(p):
        parts = [
            p.sample(s.stop - s.start, None if context is None else context[s], generator)
            for s in blocks(n_samples, 10_000)
        ]
        z = torch.cat(parts).to(codes.mean)
    n_draws = math.ceil(FEWEST_CODES / len(codes))
    draws = codes.sample(n_draws, torch.Generator(device=codes.mean.device).manual_seed(of_codes))
    log_r_codes = to_numpy(density_of(r, draws, codes.context)).reshape(-1)
    groups = np.arange(len(codes)) if codes.groups is None and n_draws > 1 else codes.groups
    log_r_samples = to_numpy(density_of(r, z.unsqueeze(0), context)[0])
    threshold = float(np.quantile(log_r_codes, QUANTILE, method="weibull"))
    first = np.flatnonzero(log_r_samples < threshold)[:EXAMPLES]
    return Holes(
        _share_below(threshold, log_r_codes, log_r_samples, None if groups is None else np.tile(groups, n_draws)),
        threshold,
        log_r_codes,
        log_r_samples,
        z[torch.as_tensor(first, device=z.device)],
        first,
        len(codes),
    )


def _share_below(threshold: float, codes: np.ndarray, samples: np.ndarray, groups: np.ndarray | None) -> Estimate:
    """The share of samples below the threshold, which is the codes' own quantile."""
    share, normal = float((samples < threshold).mean()), t_quantile(0.5 + LEVEL / 2, math.inf)
    # half a sample more keeps the error of none from being none
    smooth = (share * len(samples) + 0.5) / (len(samples) + 1)
    drawn = normal * math.sqrt(smooth * (1 - smooth) / len(samples))
    lower, upper = (float((samples < end).mean()) for end in _ends_of_quantile(codes, threshold, groups))
    low = max(0.0, share - math.hypot(share - lower, drawn))
    high = min(1.0, share + math.hypot(upper - share, drawn))
    return Estimate(share, (high - low) / (2 * normal), (low, high), LEVEL)


def _ends_of_quantile(codes: np.ndarray, threshold: float, groups: np.ndarray | None) -> tuple[float, float]:
    """The interval of the codes' quantile, from order statistics; an end beyond all codes is infinite."""
    from scipy.special import bdtrik  # scikit-learn requires scipy; scipy.stats takes a second to import

    n, tail = len(codes), 0.5 + LEVEL / 2
    independent = n
    if groups is not None:
        below = Estimate.of(codes <= threshold, groups=groups)
        variance = below.std_error**2
        known = math.isfinite(variance) and variance > 0
        fewer = (t_quantile(tail, math.inf) / t_quantile(tail, len(np.unique(groups)) - 1)) ** 2 if known else 0
        independent = min(n, max(1, round(fewer * below.value * (1 - below.value) / variance))) if known else 1
    ranks = [math.ceil(bdtrik(probability, independent, QUANTILE)) for probability in (1 - tail, tail)]
    first, last = math.floor(ranks[0] * n / independent), math.ceil((ranks[1] + 1) * n / independent)
    ordered = np.sort(codes)
    return (
        -math.inf if first < 1 else float(ordered[first - 1]),
        math.inf if last > n else float(ordered[last - 1]),
    )
