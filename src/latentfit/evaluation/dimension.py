"""How many dimensions the codes really use."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from latentfit.errors import InputError
from latentfit.evaluation.codes import Codes
from latentfit.evaluation.estimate import Estimate
from latentfit.evaluation.neighbours import nearest

#: disjoint parts behind the error, and the fewest rows of one
PARTS = 10
SMALLEST_PART = 20


def intrinsic_dimension(
    codes: Codes | Tensor | np.ndarray, *, neighbours: int = 2, n_max: int = 5000, random_state: int = 0
) -> Estimate:
    r"""The dimension of the set that the codes lie on, from ratios of distances to nearest neighbours.

    $$1 / \hat d = \frac1N \sum_i \frac1{k-1} \sum_{j<k} \log \frac{r_k(i)}{r_j(i)}$$

    with r_j(i) the distance of row i to its j-th neighbour. It is the maximum-likelihood estimate under a density
    that is constant within r_k: for k = 2 TwoNN (r_2 / r_1 is then Pareto with exponent d), for k = 20 or so
    Levina & Bickel's, less noisy and more biased by curvature and by the edges of the set.

    Of `Codes` the means are taken: draws fill all D dimensions at the scale of q's own spread, and say nothing else.
    Exact duplicates are dropped, since their ratio is infinite.

    The error comes from ten disjoint parts of the rows, each estimated on its own; a bootstrap would draw rows
    twice, which makes nearest neighbours at distance 0. Each part has N / 10 rows, so its relative variance is ten
    times that of the whole; only the spread of the parts is used, since all of them look at a coarser scale.

    Args:
        codes: `Codes`, or an array (N, *event_shape).
        neighbours: k, 2 or more.
        n_max: rows drawn from these, at most: the cost is quadratic.
        random_state: seed.

    Returns:
        d with its error. The error knows nothing of the bias: above about 10 dimensions the estimate is **too low**
        (no neighbour is near): 20-dimensional Gaussian noise of 2,000 rows counts as about 17, with k = 20 as about 15.

    Raises:
        InputError: fewer than 20 distinct rows, entries that are not finite, or k out of range.

    Source: Facco et al. (2017), arXiv 1803.06992; Levina & Bickel (2004) with MacKay & Ghahramani's average of 1/d.

    Example:
        >>> plane = np.random.default_rng(0).random((1000, 2)) @ np.eye(2, 10)
        >>> round(intrinsic_dimension(plane).value)
        2
    """
    mean = codes.mean if isinstance(codes, Codes) else torch.as_tensor(codes)
    rows = mean.detach().flatten(1).cpu().double()
    if not bool(torch.isfinite(rows).all()):
        raise InputError("intrinsic_dimension: the codes have entries that are not finite.")
    rows = torch.unique(rows, dim=0)
    if len(rows) < SMALLEST_PART:
        raise InputError(
            f"intrinsic_dimension: {len(mean)} rows, {len(rows)} of them distinct; at least {SMALLEST_PART} are needed."
        )
    if not 2 <= neighbours < min(2 * SMALLEST_PART, len(rows)):
        most = min(2 * SMALLEST_PART, len(rows)) - 1
        raise InputError(f"intrinsic_dimension: neighbours must be between 2 and {most}, got {neighbours}.")
    order = torch.as_tensor(np.random.default_rng(random_state).permutation(len(rows))[:n_max])
    rows = rows[order]
    value = _dimension(rows, neighbours)
    parts = min(PARTS, len(rows) // max(SMALLEST_PART, 2 * neighbours))
    if parts < 2:
        return Estimate.from_error(value, math.nan)
    found = np.array([_dimension(part, neighbours) for part in rows.tensor_split(parts)])
    relative = float(found.std(ddof=1) / found.mean()) / math.sqrt(parts)
    return Estimate.from_error(value, value * relative, df=parts - 1)


def _dimension(rows: Tensor, k: int) -> float:
    distance, _ = nearest(rows, rows, k, itself=False)  # (N, k)
    log_ratio = (distance[:, -1:] / distance[:, :-1]).log()
    mean = float(log_ratio.mean())
    return 1 / mean if mean > 0 else math.inf
