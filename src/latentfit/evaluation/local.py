"""Local refinement: a Gaussian proposal of its own for every scored row."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from latentfit.data.batch import Batch
from latentfit.evaluation.proposal import Frame, log_joint
from latentfit.model.vae import VAEModule

#: antithetic pairs per step, and Adam's peak rate in units of the proposal's own scale
PAIRS, RATE = 2, 0.05


def refine(vae: VAEModule, batch: Batch, frame: Frame, eps: Tensor) -> Frame:
    r"""Fit m_n and S_n of each row by ascending its own ELBO, from the shared proposal.

        m_n = m + S d_n,   S_n = S M_n,   max over d_n, M_n of E_u[log p(x_n, m_n + S_n u)] + log |M_n|

    An encoder that was fitted to the training rows misplaces the posterior of rows it has not seen, each in a
    direction of its own, which no correction shared by all rows can mend; importance weights then fail on
    almost every row (semi-amortised inference: Kim et al. 2018, arXiv 1802.02550). p(x) and the estimator's
    unbiasedness are untouched: only where the samples are drawn changes.

    Args:
        vae: the model; nothing in it changes.
        batch: R rows.
        frame: their proposals; full scales are refined as full, diagonal ones as diagonal.
        eps: (steps, R, PAIRS, D) standard normal, used for nothing else.

    Returns:
        The refined frame; a row whose ELBO did not improve keeps its own.
    """
    steps, n_rows, _, dim = eps.shape
    scale = _matrix(frame)  # (R, D, D) or (R, D)
    full = scale.dim() == 3
    with torch.inference_mode(False), torch.enable_grad():
        base = Frame(*(value.detach().clone() for value in (frame.location, scale, frame.shared, frame.log_det)))
        shift = torch.zeros_like(base.location).requires_grad_()
        log_diagonal = torch.zeros_like(base.location).requires_grad_()
        lower = torch.zeros(n_rows, dim, dim if full else 0).to(base.location).requires_grad_()
        parameters = [shift, log_diagonal, *([lower] if full else [])]
        optimiser = torch.optim.Adam(parameters, lr=RATE, betas=(0.9, 0.99))
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
            current = _compose(base, shift, log_diagonal, lower)
            loss = _loss(vae, batch, current, eps[step].clone()).sum()
            gradients = torch.autograd.grad(loss, parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = torch.nan_to_num(gradient, 0.0, 0.0, 0.0)
            optimiser.step()
        refined = _compose(base, shift.detach(), log_diagonal.detach(), lower.detach())
    start = Frame(base.location, scale, _unit(base), base.log_det)
    judge = eps[-1]
    with torch.no_grad():
        better = _value(vae, batch, refined, judge) > _value(vae, batch, start, judge)
    pick = better.view(-1, *[1] * (scale.dim() - 1))
    return Frame(
        torch.where(better.unsqueeze(1), refined.location, base.location),
        torch.where(pick, refined.own, scale),
        _unit(base),
        torch.where(better, refined.log_det, base.log_det),
    )


def _matrix(frame: Frame) -> Tensor:
    """S of each row: (R, D, D) where any part is a matrix, else its diagonal (R, D)."""
    own, shared = frame.own, frame.shared
    if own.dim() == 3:
        return own @ shared if shared.dim() == 2 else own * shared
    return own.unsqueeze(-1) * shared if shared.dim() == 2 else own * shared


def _unit(frame: Frame) -> Tensor:
    return torch.ones_like(frame.location[0])


def _compose(base: Frame, shift: Tensor, log_diagonal: Tensor, lower: Tensor) -> Frame:
    scale = base.own
    log_det = base.log_det + log_diagonal.sum(-1)
    if scale.dim() == 2:
        return Frame(base.location + scale * shift, scale * log_diagonal.exp(), _unit(base), log_det)
    factor = lower.tril(-1) + torch.diag_embed(log_diagonal.exp())
    location = base.location + (scale @ shift.unsqueeze(-1)).squeeze(-1)
    return Frame(location, scale @ factor, _unit(base), log_det)


def _draws(frame: Frame, eps: Tensor, shape: torch.Size) -> Tensor:
    placed = frame.place(torch.cat([eps, -eps], dim=1)).transpose(0, 1)  # (2 n, R, D)
    return placed.reshape(*placed.shape[:2], *shape)


def _value(vae: VAEModule, batch: Batch, frame: Frame, eps: Tensor) -> Tensor:
    return log_joint(vae, batch, _draws(frame, eps, vae.event_shape)).mean(0) + frame.log_det


def _loss(vae: VAEModule, batch: Batch, frame: Frame, eps: Tensor) -> Tensor:
    return -_value(vae, batch, frame, eps)
