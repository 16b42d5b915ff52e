"""log p(x) by annealed importance sampling: for rows whose posterior no single Gaussian covers."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentfit.errors import ReliabilityWarning
from latentfit.evaluation.annealing import Settings, annealers, forward, require_exact
from latentfit.evaluation.estimate import Estimate
from latentfit.evaluation.proposal import Frame, Proposal, encoder_proposal, fit_proposal
from latentfit.evaluation.rows import evaluation_rows, frozen, to_numpy
from latentfit.model.vae import VAEModule

#: chains, temperatures and leapfrog steps by default
CHAINS, TEMPERATURES, LEAPFROG = 16, 150, 3
#: a row is unreliable where fewer chains than this carry its weight; share of such rows that warns
FEWEST_CHAINS, UNRELIABLE_SHARE = 2.0, 0.1


@dataclass(frozen=True)
class AIS:
    """Annealed log p(x) of N rows, nats.

    Attributes:
        values: (N,) log of the mean weight over chains: biased downward, by less the more temperatures and chains.
        std_error: (N,) of each value, sd(w) / (sqrt(C) mean(w)) (delta method); nan with one chain.
        effective_sample_size: (N,) (sum w)^2 / sum w^2 over chains, between 1 and C.
        acceptance: (N,) mean acceptance of the transitions; nan with one temperature, which has none.
        estimate: the mean over rows, with its standard error over rows.
        settings: chains, temperatures, leapfrog steps, seed and refinement.
    """

    values: np.ndarray
    std_error: np.ndarray
    effective_sample_size: np.ndarray
    acceptance: np.ndarray
    estimate: Estimate
    settings: Settings

    @property
    def unreliable(self) -> float:
        """Share of rows whose weight is carried by fewer than two chains."""
        return float(np.mean(~(self.effective_sample_size >= FEWEST_CHAINS)))

    def __float__(self) -> float:
        return self.estimate.value

    def __str__(self) -> str:
        return f"log p(x) = {self.estimate} nats per row ({len(self.values):,} rows, annealed)"


def ais_log_likelihood(
    vae: VAEModule,
    X: Any,
    *,
    n_chains: int = CHAINS,
    n_temperatures: int = TEMPERATURES,
    n_leapfrog: int = LEAPFROG,
    proposal: Proposal | None = None,
    X_train: Any = None,
    random_state: int = 0,
    refinement_steps: int = 100,
    groups: Any = None,
    frame: Frame | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> AIS:
    r"""log p(x) per row by annealed importance sampling from the refined evaluation proposal.

        log f_b(z) = (1 - b) log N(z; m, S S^T) + b log p(x, z),   0 = b_0 < ... < b_K = 1
        log p(x) ~ log 1/C sum_c w_c,   log w_c = sum_k (b_k - b_{k-1}) log [p(x, z_{k-1}) / N(z_{k-1}; m, S S^T)]

    z_0 is drawn from the Gaussian and z_k from z_{k-1} by Hamiltonian Monte Carlo that leaves f_{b_k} in place (Neal
    2001, arXiv physics/9803008; for decoders: Wu et al. 2017, arXiv 1611.04273). The chains start at the row's own
    Gaussian, the narrow component of the evaluation proposal, and not at the prior as is usual: the Gaussian is within
    a few nats of the posterior, the prior as far as the KL, often tens, and nats cost temperatures.

    Step sizes, one for each row and temperature, come from a preliminary run on noise of its own and are then fixed,
    so the weights stay unbiased; in the log the estimate is a lower bound in expectation, E[log p^(x)] <= log p(x).

    What it cannot do: chains that start in one mode find another only if some f_b joins the two. A mode behind a deep
    valley is missed, and nothing here shows it; `bdmc` shows on simulated rows whether that happens.

    The same `random_state` gives the same noise to the same row whichever model is scored: differences between models
    of one latent dimension are paired.

    Args:
        vae: the model; its log p(x, z) must be exact and differentiable in z.
        X: (N, *data_shape), rows to score. A row costs (n_chains + 4) n_temperatures n_leapfrog decoder calls with
            their gradients.
        n_chains: C, chains per row.
        n_temperatures: K, steps of b; 1 is plain importance sampling.
        n_leapfrog: L, leapfrog steps per transition.
        proposal: from `fit_proposal`.
        X_train: rows to fit the proposal on, where none is given; with neither, the encoder itself serves.
        random_state: seed.
        refinement_steps: gradient steps that fit each row's Gaussian; 0 starts from the shared proposal.
        groups: (N,) labels of related rows, for a cluster-robust error of the mean.
        frame: from `refined_rows`, where the rows' own Gaussians are known already.
        progress: called with (step, steps).

    Returns:
        Values, errors, acceptance, and effective sample size over chains.

    Raises:
        CapabilityError: a density that is not exact, or has no gradient.
        InputError: counts or rows that cannot be used, or a proposal without a scale.

    Warns:
        ReliabilityWarning: where one chain carries the weight of more than 10 % of the rows.
    """
    settings = Settings(n_chains, n_temperatures, n_leapfrog, random_state, refinement_steps)
    require_exact(vae)
    batch = evaluation_rows(X, vae)
    e = starting_proposal(vae, proposal, X_train, random_state)
    log_w, acceptance = [], []
    with torch.inference_mode(False), torch.no_grad(), frozen(vae, e, random_state=random_state):
        for _, annealer, noise in annealers(vae, e, batch, settings, progress, known=frame):
            run = forward(annealer, noise, settings)
            log_w.append(run.log_w.cpu())
            acceptance.append(run.acceptance)
    weights = None if batch.weight is None else to_numpy(batch.weight)
    result = _summary(torch.cat(log_w), torch.cat(acceptance), settings, weights, groups)
    if n_chains > 1 and result.unreliable > UNRELIABLE_SHARE:
        warnings.warn(
            f"Annealing is unreliable for {result.unreliable:.0%} of rows (one chain carries the weight): log p(x) is "
            "too low there, by an unknown amount; take more n_temperatures.",
            ReliabilityWarning,
            stacklevel=2,
        )
    return result


def starting_proposal(vae: VAEModule, proposal: Proposal | None, X_train: Any, random_state: int) -> Proposal:
    """The proposal given, or fitted on X_train, or the encoder."""
    if proposal is not None:
        return proposal
    return encoder_proposal(vae) if X_train is None else fit_proposal(vae, X_train, random_state=random_state)


def _summary(log_w: Tensor, acceptance: Tensor, settings: Settings, weights: np.ndarray | None, groups: Any) -> AIS:
    """From log_w (N, C) and acceptance (N,)."""
    c = log_w.shape[1]
    total = log_w.logsumexp(1)
    size = to_numpy((2 * total - (2 * log_w).logsumexp(1)).exp())
    values = to_numpy(total - math.log(c))
    error = np.sqrt(np.maximum(c / size - 1, 0) / (c - 1)) if c > 1 else np.full_like(values, math.nan)
    return AIS(
        values=values,
        std_error=error,
        effective_sample_size=size,
        acceptance=to_numpy(acceptance),
        estimate=Estimate.of(values, weights=weights, groups=groups),
        settings=settings,
    )
