"""The mean of log p(x) where importance weights fail: annealing a few rows corrects the mean of all."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from latentfit.errors import ReliabilityWarning
from latentfit.evaluation.ais import ais_log_likelihood
from latentfit.evaluation.escalation import gate_fails
from latentfit.evaluation.likelihood import LogLikelihood
from latentfit.evaluation.proposal import Proposal
from latentfit.evaluation.rows import evaluation_rows
from latentfit.model.vae import VAEModule

#: rows that are annealed, and temperatures. Measured on MNIST (40 units) and digits: a row's difference spreads by 0.2
#: nats, so 64 rows know its mean to 0.03, and 150 temperatures move it by less than 0.02
N_ROWS, TEMPERATURES = 64, 50


@dataclass(frozen=True)
class TwoPhase:
    """log p(x) whose mean is to be believed, nats.

    Attributes:
        values: (N,) pseudo-values: their mean is the estimate and their spread gives its standard error. Those of the
            annealed rows are no row's own log p(x).
        unreliable: share of rows, of the annealed ones where some were, whose estimate is carried by too few draws.
        n_annealed: how many rows were annealed; 0 where the importance weights held, or annealing is not possible.
        correction: nats by which annealing moved the mean.
    """

    values: np.ndarray
    unreliable: float
    n_annealed: int = 0
    correction: float = 0.0


def annealed_where_needed(
    vae: VAEModule,
    X: Any,
    scored: LogLikelihood,
    *,
    proposal: Proposal,
    n_rows: int = N_ROWS,
    n_temperatures: int = TEMPERATURES,
    random_state: int = 0,
) -> TwoPhase:
    r"""Correct the mean of importance-sampled log p(x) by annealing a random few of the rows, where the gate fails.

    With l_i the importance-sampled and a_i the annealed log p(x) of row i, A the n rows annealed of N,

        mean_i v_i,   v_i = l_i + (N / n) 1[i in A] (a_i - l_i)

    the difference estimator of two-phase sampling (Särndal, Swensson and Wretman 1992, chapter 9): over the
    choice of A its expectation is the mean of a_i over all rows, and its error is that of the differences, a fraction
    of a nat each, not that of a_i. The spread of v_i overstates its variance by (mean difference)^2 / n. The choice of
    rows and the noise depend on `random_state` alone: models scored with the same one stay paired.

    Args:
        vae: the model.
        X: (N, *data_shape), the rows that were scored.
        scored: their log p(x) from `log_likelihood`.
        proposal: from `fit_proposal`.
        n_rows, n_temperatures: how many rows to anneal, and how finely; on all of them where there are fewer.
        random_state: seed.

    Returns:
        `scored` unchanged where `gate_fails` says that its weights hold, where the prior's density is not exact, and
        where several models were combined.
    """
    if not gate_fails(scored) or vae.prior.density != "exact" or scored.n_models > 1:
        return TwoPhase(scored.values, scored.unreliable)
    batch = evaluation_rows(X, vae)
    chosen = np.random.default_rng(random_state).permutation(len(batch))[:n_rows]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReliabilityWarning)  # `unreliable` says it
        annealed = ais_log_likelihood(
            vae,
            batch[torch.as_tensor(chosen, device=batch.x.device)],
            n_temperatures=n_temperatures,
            proposal=proposal,
            random_state=random_state,
        )
    values = scored.values.copy()
    # a row whose weights are all 0 says nothing of the others' error: it is annealed, and left out of their mean
    finite = np.isfinite(values[chosen])
    values[chosen[~finite]] = annealed.values[~finite]
    kept = chosen[finite]
    difference = annealed.values[finite] - values[kept]
    values[kept] += len(batch) / max(1, len(kept)) * difference
    return TwoPhase(values, annealed.unreliable, len(chosen), float(difference.mean()) if len(kept) else 0.0)
