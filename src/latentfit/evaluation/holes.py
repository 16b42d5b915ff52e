"""Prior holes: samples of the prior where the decoder has hardly been trained."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from latentfit.errors import InputError
from latentfit.evaluation.codes import Codes
from latentfit.evaluation.estimate import Estimate
from latentfit.evaluation.gap import density_of, require_bound
from latentfit.evaluation.rows import blocks, frozen, to_numpy
from latentfit.model.contracts import Prior

#: the quantile of log r on held-out codes below which a sample lies in a hole
QUANTILE = 0.01
#: samples in holes that are kept, to be looked at
EXAMPLES = 3


@dataclass(frozen=True)
class Holes:
    """Share of prior samples in holes of q(z).

    Attributes:
        share: of p's samples below the threshold; 1 % if p were q(z).
        threshold: the 1 % quantile of log r on held-out codes, nats.
        log_r_codes: (N,) log r of held-out codes.
        log_r_samples: (n,) log r of p's samples.
        examples: (k, *event_shape) the first of p's samples that lie in a hole, in the order they were drawn.
        example_rows: (k,) which of the samples they are.
    """

    share: Estimate
    threshold: float
    log_r_codes: np.ndarray
    log_r_samples: np.ndarray
    examples: Tensor | None = None
    example_rows: np.ndarray | None = None


def prior_holes(
    r: Prior, p: Prior, codes: Codes, *, n_samples: int = 5000, context=None, random_state: int = 0
) -> Holes:
    """Share of samples of p whose log r is below the 1 % quantile of log r on held-out codes.

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
    generator = torch.Generator(device=device).manual_seed(random_state)
    with torch.inference_mode(), frozen(p):
        parts = [
            p.sample(s.stop - s.start, None if context is None else context[s], generator)
            for s in blocks(n_samples, 10_000)
        ]
        z = torch.cat(parts).to(codes.mean)
    draws = codes.sample(1, torch.Generator(device=codes.mean.device).manual_seed(random_state))
    log_r_codes = to_numpy(density_of(r, draws, codes.context)[0])
    log_r_samples = to_numpy(density_of(r, z.unsqueeze(0), context)[0])
    threshold = float(np.quantile(log_r_codes, QUANTILE))
    share = float((log_r_samples < threshold).mean())
    # both the quantile and the share are estimated: their errors add
    error = math.sqrt(share * (1 - share) / n_samples + QUANTILE * (1 - QUANTILE) / len(codes))
    estimate = Estimate.from_error(share, error)
    low, high = estimate.interval
    first = np.flatnonzero(log_r_samples < threshold)[:EXAMPLES]
    return Holes(
        Estimate(share, error, (max(0.0, low), min(1.0, high))),
        threshold,
        log_r_codes,
        log_r_samples,
        z[torch.as_tensor(first, device=z.device)],
        first,
    )
