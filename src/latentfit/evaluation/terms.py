"""The terms of the ELBO on held-out rows, and what the encoder loses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from latentfit.data.batch import Batch
from latentfit.errors import CapabilityError, InputError
from latentfit.evaluation.estimate import Estimate
from latentfit.evaluation.likelihood import LogLikelihood
from latentfit.evaluation.rows import blocks, decoder_rows, drawn_models, evaluation_rows, frozen, to_numpy
from latentfit.model.vae import VAEModule


@dataclass(frozen=True)
class ELBOTerms:
    """E_q[log p(x|z)], KL(q(z|x) || p) and their difference, nats per row, at KL weight 1, no penalties.

    Attributes:
        log_likelihood, kl, elbo: means over rows.
        log_likelihood_per_row, kl_per_row, elbo_per_row: (N,).
        analytic_kl: whether the KL is in closed form, not by draws.
        weights: (N,) of the rows in the means, or None.
    """

    log_likelihood: Estimate
    kl: Estimate
    elbo: Estimate
    log_likelihood_per_row: np.ndarray
    kl_per_row: np.ndarray
    elbo_per_row: np.ndarray
    analytic_kl: bool
    weights: np.ndarray | None = None


def elbo_terms(
    vae: VAEModule | Sequence[VAEModule], X: Any, *, n_draws: int = 10, groups: Any = None, random_state: int = 0
) -> ELBOTerms:
    """The ELBO's terms on rows X (N, *data_shape), averaged over `n_draws` draws of z per row.

    The KL is in closed form where the posterior and the prior have one, else the mean of log q(z given x) -
    log p(z) over the same draws. Of several VAEs, or the draws of a distribution over weights, the mean of their
    bounds, itself a bound of log p(x).

    Raises:
        CapabilityError: a prior or a posterior without a density.
        InputError: rows or counts that cannot be used.
    """
    if n_draws < 1:
        raise InputError(f"n_draws must be at least 1, got {n_draws}.")
    models = drawn_models(vae, random_state)
    for model in models:
        if model.prior.density in ("none", "approximate"):
            name = model.prior.name or type(model.prior).__name__
            raise CapabilityError(f"The ELBO needs p(z); the density of the prior {name!r} is {model.prior.density!r}.")
    batch = evaluation_rows(X, models[0])
    found = [_per_row(model, batch, n_draws, random_state) for model in models]
    log_p_rows = np.mean([log_p for log_p, _, _ in found], 0)
    kl_rows = np.mean([kl for _, kl, _ in found], 0)
    elbo_rows = log_p_rows - kl_rows
    weights = None if batch.weight is None else to_numpy(batch.weight)

    def estimate(values: np.ndarray) -> Estimate:
        return Estimate.of(values, weights=weights, groups=groups)

    return ELBOTerms(
        log_likelihood=estimate(log_p_rows),
        kl=estimate(kl_rows),
        elbo=estimate(elbo_rows),
        log_likelihood_per_row=log_p_rows,
        kl_per_row=kl_rows,
        elbo_per_row=elbo_rows,
        analytic_kl=all(analytic for _, _, analytic in found),
        weights=weights,
    )


def _per_row(vae: VAEModule, batch: Batch, n_draws: int, random_state: int) -> tuple[np.ndarray, np.ndarray, bool]:
    """E_q[log p(x|z)] (N,), KL (N,), and whether the KL is in closed form."""
    budget = decoder_rows(batch, vae.device)
    generator = torch.Generator(device=vae.device).manual_seed(random_state)
    reconstruction, divergence, analytic = [], [], True
    with torch.inference_mode(), frozen(vae, random_state=random_state):
        for rows in blocks(len(batch), budget):
            part = batch[rows].to(vae.device)
            q = vae.encode(part)
            if not q.has_density:
                raise CapabilityError(f"The ELBO needs log q(z given x), which {type(q).__name__} has not.")
            closed = q.kl(vae.prior)
            log_p, kl = [], []
            for draws in blocks(n_draws, max(1, budget // len(part))):
                n = draws.stop - draws.start
                z, log_q = q.rsample_with_log_prob(n, generator)
                log_p.append(vae.log_likelihood(part, z).double())
                if closed is None:
                    kl.append((log_q - vae.prior.log_prob(z, part.context)).double())
            reconstruction.append(torch.cat(log_p).mean(0))
            divergence.append(torch.cat(kl).mean(0) if closed is None else closed.double())
            analytic = analytic and closed is not None
    return to_numpy(torch.cat(reconstruction)), to_numpy(torch.cat(divergence)), analytic


def inference_gap(log_likelihood: LogLikelihood, terms: ELBOTerms, *, groups: Any = None) -> Estimate:
    """log p(x) - ELBO, paired by row: what a better encoder could win, nats per row, with the rows' weights.

    Raises:
        InputError: numbers of different rows.
    """
    if log_likelihood.values.shape != terms.elbo_per_row.shape:
        raise InputError(
            f"inference_gap: log p(x) is of {len(log_likelihood.values)} rows, the ELBO of "
            f"{len(terms.elbo_per_row)}; "
            "score the same rows."
        )
    return Estimate.of(log_likelihood.values - terms.elbo_per_row, weights=terms.weights, groups=groups)
