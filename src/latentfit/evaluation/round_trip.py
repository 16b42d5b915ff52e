"""What comes back of the rows: encode, decode, compare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from latentfit.evaluation.estimate import Estimate
from latentfit.evaluation.rows import blocks, decoder_rows, evaluation_rows, frozen, to_numpy
from latentfit.model.vae import VAEModule


def explained_variance(
    vae: VAEModule,
    X: Any,
    *,
    mean: Callable[[Tensor], Tensor] | None = None,
    groups: ArrayLike | None = None,
    random_state: int = 0,
) -> Estimate:
    r"""The share of the rows' variance that decoding the posterior's mean explains.

    $$R^2 = 1 - \frac{\sum_{nd} (x_{nd} - E[x_d \mid z = \mu(x_n)])^2}{\sum_{nd} (x_{nd} - \bar x_d)^2}$$

    in the model's units (after `preprocess`), over observed entries. 1: every row comes back; 0: the mean row would do
    as well; below 0: it would do better.

    Args:
        vae: the model.
        X: (N, *data_shape).
        mean: of x from the decoder's output; the likelihood's own by default.
        groups: (N,) labels of related rows, for a cluster-robust error.
        random_state: seed of an encoder that draws.

    Returns:
        The share, with its error as a ratio of two means (the delta method); 0 where the rows do not vary.

    Raises:
        InputError: rows that cannot be used.
    """
    batch = evaluation_rows(X, vae)
    parts = [batch[rows] for rows in blocks(len(batch), decoder_rows(batch, vae.device))]
    total = count = torch.zeros(())
    with torch.inference_mode(), frozen(vae, random_state=random_state):
        for part in parts:
            x, seen = _observed(vae, part.to(vae.device))
            total, count = total.to(x) + x.sum(0), count.to(x) + seen.sum(0)
        mean_row = total / count.clamp(min=1)
        won, spread = [], []
        for part in parts:
            x, seen = _observed(vae, part.to(vae.device))
            code, _ = vae.encode(part.to(vae.device)).moments()
            context = None if part.context is None else part.context.to(vae.device)
            params = vae.decode(code, context)
            decoded = (vae.likelihood.mean(params, context) if mean is None else mean(params)).double()
            around = (seen * (x - mean_row).square()).flatten(1).sum(1)  # (B,)
            spread.append(around)
            won.append(around - (seen * (x - decoded).square()).flatten(1).sum(1))
    weights = None if batch.weight is None else to_numpy(batch.weight)
    around_rows, won_rows = to_numpy(torch.cat(spread)), to_numpy(torch.cat(won))
    variance = Estimate.of(around_rows, weights=weights).value
    if not variance > 0:
        return Estimate(0.0, 0.0, (0.0, 0.0))
    share = Estimate.of(won_rows, weights=weights).value / variance
    return Estimate.of(share + (won_rows - share * around_rows) / variance, weights=weights, groups=groups)


def _observed(vae: VAEModule, part: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows in the model's units, unobserved entries 0, and which are observed: float64, (B, *data_shape) each."""
    x = vae.model_units(part.x).double()
    seen = torch.ones_like(x, dtype=torch.bool) if part.mask is None else part.mask
    return torch.where(seen, x, 0.0), seen.double()
