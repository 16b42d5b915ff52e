"""Decoder calibration: is the sigma of a Normal likelihood that of its own residuals?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from latentfit.data.batch import Batch
from latentfit.errors import InputError
from latentfit.evaluation.codes import encode_rows
from latentfit.evaluation.estimate import Estimate
from latentfit.evaluation.proposal import Proposal
from latentfit.evaluation.rows import blocks, decoder_rows, evaluation_rows, frozen, to_numpy
from latentfit.likelihoods import Normal
from latentfit.model.contracts import LOG_2PI, Likelihood
from latentfit.model.vae import VAEModule


@dataclass(frozen=True)
class Calibration:
    r"""The sigma a model is scored with, and the one that its residuals ask for.

    Attributes:
        sigma_used, sigma_optimal: in the model's units (after `preprocess`); the root mean square over columns,
            where each has its own.
        columns_used, columns_optimal: (n_columns,) each, or None where one sigma serves all entries.
        gain: nats per row won on the test rows by the optimal sigma, encoder, decoder and draws being the same.
        gain_per_row: (N,).
        mean_square: of the residuals over the sigma used; 1 when calibrated.
        calibrated: the likelihood with the optimal sigma, which is fixed.
    """

    sigma_used: float
    sigma_optimal: float
    columns_used: np.ndarray | None
    columns_optimal: np.ndarray | None
    gain: Estimate
    gain_per_row: np.ndarray
    mean_square: float
    calibrated: Likelihood

    def effective_beta(self, kl_weight: float = 1.0) -> float:
        r"""The KL weight that training with the sigma used amounts to at the optimal one.

        With s the sigma used, sigma the optimal one and SSE a row's sum of squared residuals the loss is

        $$\frac{SSE}{2 s^2} + w\,KL = \frac{\sigma^2}{s^2}
          \left(\frac{SSE}{2 \sigma^2} + w \frac{s^2}{\sigma^2} KL\right)$$

        up to constants: beta = w s^2 / sigma^2 = w / E[(residual / s)^2]. A sigma that is too large is a beta above
        1. One sigma for all entries makes it exact; with one for each column it is the second form, a mean over
        columns.

        Args:
            kl_weight: w, the weight of the KL beside -log p(x given z) in training.
        """
        return kl_weight / self.mean_square


def decoder_calibration(
    vae: VAEModule,
    X_calibration: Any,
    X_test: Any,
    *,
    groups: ArrayLike | None = None,
    proposal: Proposal | None = None,
    n_draws: int = 4,
    random_state: int = 0,
) -> Calibration | None:
    r"""The sigma that maximises E_q log p(x given z), and what it wins on other rows.

    $$\sigma^2 = \text{mean over rows, draws and entries of } (x_d - \mu_d(z))^2, \quad z \sim q(z \mid x)$$

    at *draws* of z: at the posterior's mean the residuals would be too small. An encoder that is off leaves residuals
    that no sigma is to blame for: with `proposal`, a fitted approximation of the true posterior, z is drawn from its
    narrow component instead of q. This is then the M step of EM, and the gain a lower bound on what log p(x) wins.
    For `scale="column"` the mean is by column. Where the sigma used was learned or follows the batch, its floor holds
    here too.

    Args:
        vae: the model.
        X_calibration: rows the optimal sigma is found on (training rows, as those it was learned on).
        X_test: other rows, for the gain.
        groups: (N,) labels of related test rows, for a cluster-robust error.
        proposal: from `fit_proposal`; None draws from the encoder.
        n_draws: draws of z per row; for the gain the same under both sigmas.
        random_state: seed.

    Returns:
        None for likelihoods other than `Normal`, and for `scale="row"`: scales that the decoder gives for each entry,
        and those of the discretised logistic, are not handled.

    Raises:
        InputError: rows or counts that cannot be used.
        CapabilityError: `scale="optimal"` that was never frozen.

    Source: Rybkin, Daniilidis & Levine (2021), arXiv:2006.13202.
    """
    likelihood = vae.likelihood
    if not isinstance(likelihood, Normal) or likelihood.scale == "row":
        return None
    if n_draws < 1:
        raise InputError(f"n_draws must be at least 1, got {n_draws}.")
    by_column = likelihood.scale == "column"
    square, used = _mean_square(vae, X_calibration, proposal, n_draws, random_state, by_column)
    optimal = np.sqrt(np.maximum(square, 1e-24))  # residuals of exactly 0 have no scale
    if isinstance(likelihood.scale, str):
        optimal = np.maximum(optimal, likelihood.floor)
    calibrated = with_scale(likelihood, optimal)
    per_row, weights = _gain_per_row(vae, calibrated, X_test, proposal, n_draws, random_state)
    return Calibration(
        sigma_used=float(np.sqrt(np.mean(used**2))),
        sigma_optimal=float(np.sqrt(np.mean(optimal**2))),
        columns_used=used if by_column else None,
        columns_optimal=optimal if by_column else None,
        gain=Estimate.of(per_row, weights=weights, groups=groups),
        gain_per_row=per_row,
        mean_square=float(np.mean(optimal**2 / used**2)),
        calibrated=calibrated,
    )


def with_scale(likelihood: Normal, sigma: np.ndarray) -> Normal:
    """A Normal with this sigma, () or (n_columns,), on the same device."""
    if likelihood.scale != "column":
        return Normal(scale=float(sigma)).to(likelihood._floor.device).eval()
    result = Normal(scale="column", n_columns=likelihood.n_columns, floor=likelihood.floor)
    excess = np.maximum(sigma**2 - np.square(likelihood.floor), 0.0)
    with torch.no_grad(), np.errstate(divide="ignore"):
        log_scale = torch.as_tensor(0.5 * np.log(excess))  # at the floor -inf, which the likelihood clamps
        result.log_scale.copy_(log_scale.clamp(min=-1e3))
    return result.to(likelihood.log_scale).eval()


def _mean_square(
    vae: VAEModule, X: Any, proposal: Proposal | None, n_draws: int, random_state: int, by_column: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Mean squared residual at draws, and the sigma used: each () or (n_columns,), float64."""
    batch = evaluation_rows(X, vae, "X_calibration")
    total, count = np.zeros(()), np.zeros(())
    used: np.ndarray | None = None
    for part, params in _decoded(vae, batch, proposal, n_draws, random_state):
        mean = vae.likelihood.mean(params, part.context)  # (S, B, *data_shape)
        if used is None:
            # the density at the mean says the scale, however it is kept: -log s - log(2 pi) / 2
            at_mean = vae.likelihood.entry_log_prob(mean[0, :1], mean[:1, :1], part.context)
            entries = torch.exp(-at_mean.double() - 0.5 * LOG_2PI).flatten(0, -2)  # (*, n_columns)
            used = to_numpy(entries[0] if by_column else entries.flatten()[0])
        observed = torch.ones_like(mean, dtype=torch.bool) if part.mask is None else part.mask.expand_as(mean)
        share = observed.double()
        if part.weight is not None:
            share = share * part.weight.double().view(-1, *[1] * (mean.dim() - 2))
        residual = torch.where(observed, vae.model_units(part.x) - mean, 0.0).double()
        over = tuple(range(mean.dim() - 1)) if by_column else tuple(range(mean.dim()))
        total = total + to_numpy((share * residual.square()).sum(over))
        count = count + to_numpy(share.sum(over))
    assert used is not None  # at least one row, or evaluation_rows had refused
    return np.asarray(total / np.maximum(count, 1e-300)), used


def _gain_per_row(
    vae: VAEModule, calibrated: Likelihood, X: Any, proposal: Proposal | None, n_draws: int, random_state: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """log p(x given z) with the calibrated scale minus that with the one used, and the rows' weights: (N,) each."""
    batch = evaluation_rows(X, vae, "X_test")
    parts = []
    for part, params in _decoded(vae, batch, proposal, n_draws, random_state):
        x = vae.model_units(part.x)
        after, before = (
            likelihood.log_prob(x, params, context=part.context, mask=part.mask).double()
            for likelihood in (calibrated, vae.likelihood)
        )
        parts.append((after - before).mean(0))
    return to_numpy(torch.cat(parts)), None if batch.weight is None else to_numpy(batch.weight)


def _decoded(
    vae: VAEModule, batch: Batch, proposal: Proposal | None, n_draws: int, random_state: int
) -> Iterator[tuple[Batch, Tensor]]:
    """Blocks of rows with the decoder's parameters (S, B, *data_shape) at draws of z, in bounded memory."""
    generator = torch.Generator(device=vae.device).manual_seed(random_state)
    with torch.inference_mode(), frozen(vae, random_state=random_state):
        for rows in blocks(len(batch), max(1, decoder_rows(batch, vae.device) // n_draws)):
            part = batch[rows].to(vae.device)
            if proposal is None:
                z, _ = vae.encode(part).rsample_with_log_prob(n_draws, generator)
            else:
                codes = encode_rows(vae, part, random_state=random_state)
                u = torch.randn((len(part), n_draws, proposal.dim), generator=generator, device=vae.device)
                z = proposal.frame(codes).place(u.to(codes.mean)).transpose(0, 1)  # (S, B, D)
                z = z.reshape(n_draws, len(part), *vae.event_shape)
            yield part, vae.decode(z, part.context)
