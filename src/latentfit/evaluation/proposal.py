"""The evaluation proposal: where importance samples of z are drawn, given x."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from latentfit.data.batch import Batch
from latentfit.data.rows import Rows
from latentfit.errors import InputError
from latentfit.evaluation.codes import Codes, encode_rows
from latentfit.evaluation.rows import RowNoise, evaluation_rows, frozen
from latentfit.model.contracts import LOG_2PI, Shape, as_shape
from latentfit.model.vae import VAEModule
from latentfit.training import Recipe, minimise

#: from this many latents on L and A are diagonal by default: D^2 numbers would need more rows than there are
FULL_UP_TO = 64
#: widths tried for the defensive component, and its share of the draws
WIDTHS = (1.1, 1.25, 1.5, 2.0)
WIDE_SHARE = 0.1
#: rows that decide early stopping, the first scale and the width
PILOT_ROWS, PILOT_DRAWS = 256, 100


@dataclass(frozen=True, slots=True)
class Frame:
    """Where the proposals of N rows are: m (N, D), S = T L, log |S| (N,).

    T (`own`) is (N, D, D) or its diagonal (N, D); L (`shared`) is (D, D) or its diagonal (D,).
    """

    location: Tensor
    own: Tensor
    shared: Tensor
    log_det: Tensor

    def __getitem__(self, rows: slice) -> Frame:
        """The proposals of some rows."""
        return Frame(self.location[rows], self.own[rows], self.shared, self.log_det[rows])

    @classmethod
    def joined(cls, parts: Sequence[Frame]) -> Frame:
        """The proposals of several blocks of rows, which share L."""
        location, own, log_det = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("location", "own", "log_det")
        )
        return cls(location, own, parts[0].shared, log_det)

    def place(self, u: Tensor) -> Tensor:
        """m + S u: (N, n, D) -> (N, n, D)."""
        turned = u @ self.shared.T if self.shared.dim() == 2 else u * self.shared
        offset = turned @ self.own.mT if self.own.dim() == 3 else turned * self.own.unsqueeze(1)
        return self.location.unsqueeze(1) + offset

    @torch.no_grad()
    def slope(self, u: Tensor) -> Tensor:
        """The gradient of log N(z; m, S S^T) at z = m + S u, which is -S^-T u: (N, n, D) -> (N, n, D)."""
        if self.shared.dim() == 2:
            flat = torch.linalg.solve_triangular(self.shared.T, u.flatten(0, 1).T, upper=True)
            v = flat.T.view_as(u)
        else:
            v = u / self.shared
        if self.own.dim() == 3:
            return -torch.linalg.solve_triangular(self.own.mT, v.mT, upper=True).mT
        return -v / self.own.unsqueeze(1)


class Proposal(nn.Module):
    r"""A Gaussian proposal on top of a frozen encoder, with a defensive component.

        e(z|x) = (1 - a) N(z; m, S S^T) + a N(z; m, c^2 S S^T),   m = mu(x) + s (A mu~(x) + b),   S = T(x) L

    mu(x) and T(x) are the encoder's mean and scale (diagonal, or its Cholesky factor), mu~ the standardised
    mean, s a fixed unit; A, b and the lower-triangular L are shared by all rows and start at 0, 0 and I, so
    that the proposal starts as the encoder itself. With a full L it is exact for linear-Gaussian models
    whatever the encoder's scale. Draws are stratified: exactly round(a n) come from the wide component, and
    are weighted by the mixture (the balance heuristic, Veach & Guibas 1995; defensive mixtures, Hesterberg
    1995), so importance weights stay unbiased, and the wide component tames them where the narrow one is too
    narrow.

    Args:
        event_shape: of z, D = numel.
        full: whether A and L are full matrices, or diagonal.
        width: c, above 1.
        wide_share: a, in [0, 1).

    Raises:
        InputError: a width or a share out of range.
    """

    center: Tensor
    spread: Tensor
    unit: Tensor
    fixed_scale: Tensor
    width: Tensor

    def __init__(
        self, event_shape: Shape, *, full: bool = True, width: float = 1.5, wide_share: float = WIDE_SHARE
    ) -> None:
        super().__init__()
        if not width >= 1 or not 0 <= wide_share < 1:
            raise InputError(f"Proposal: width >= 1 and 0 <= wide_share < 1 expected, got {width}, {wide_share}.")
        self.event_shape = as_shape(event_shape)
        self.full, self.wide_share = full, wide_share
        d = self.dim = self.event_shape.numel()
        self.turn = nn.Parameter(torch.zeros((d, d) if full else (d,)))
        self.shift = nn.Parameter(torch.zeros(d))
        self.log_scale = nn.Parameter(torch.zeros(d))
        self.lower = nn.Parameter(torch.zeros(d, d)) if full else None
        self.register_buffer("center", torch.zeros(d))
        self.register_buffer("spread", torch.ones(d))
        self.register_buffer("unit", torch.ones(d))
        #: nan: the encoder's own scale; a number: used in its place (deterministic encoders)
        self.register_buffer("fixed_scale", torch.full((d,), math.nan))
        self.register_buffer("width", torch.tensor(float(width)))

    def strata(self, n: int) -> tuple[int, int]:
        """How many of n draws come from the narrow and from the wide component."""
        wide = min(round(self.wide_share * n), n - 1)
        return n - wide, wide

    def frame(self, codes: Codes) -> Frame:
        """m and S of the rows' proposals."""
        mean = codes.mean.flatten(1)
        standard = (mean - self.center) / self.spread
        turned = standard @ self.turn.T if self.full else standard * self.turn
        location = mean + self.unit * (turned + self.shift)
        shared = self._factor() if self.full else self.log_scale.exp()
        if codes.scale_tril is not None:
            diagonal = codes.scale_tril.diagonal(dim1=-2, dim2=-1)
            return Frame(location, codes.scale_tril, shared, self.log_scale.sum() + diagonal.log().sum(-1))
        scale = codes.std.flatten(1)
        scale = torch.where(self.fixed_scale.isnan(), scale, self.fixed_scale)
        return Frame(location, scale, shared, self.log_scale.sum() + scale.log().sum(-1))

    def draw(self, frame: Frame, eps: Tensor) -> tuple[Tensor, Tensor]:
        """Stratified draws around the rows' proposals.

        Args:
            frame: the proposals of N rows.
            eps: (N, n, D) standard normal.

        Returns:
            z (n, N, *event_shape) and log e(z|x) (n, N).
        """
        n = eps.shape[1]
        narrow, wide = self.strata(n)
        u = eps
        if wide:
            u = torch.cat([eps[:, :narrow], self.width * eps[:, narrow:]], dim=1)
        z = frame.place(u).transpose(0, 1).reshape(n, len(u), *self.event_shape)
        energy = u.square().sum(-1)  # (N, n)
        log_e = -0.5 * energy
        if wide:
            log_wide = -0.5 * energy / self.width**2 - self.dim * self.width.log()
            log_e = torch.logaddexp(math.log(narrow / n) + log_e, math.log(wide / n) + log_wide)
        return z, (log_e - frame.log_det.unsqueeze(1) - 0.5 * self.dim * LOG_2PI).T

    def _factor(self) -> Tensor:
        """L (D, D): rows in units of their diagonal, so that one learning rate serves every scale."""
        unit = torch.eye(self.dim, dtype=self.shift.dtype, device=self.shift.device)
        if self.lower is not None:
            unit = unit + self.lower.tril(-1)
        return self.log_scale.exp().unsqueeze(-1) * unit


def fit_proposal(
    vae: VAEModule,
    X_train: Any,
    *,
    max_steps: int = 250,
    warm_start: Proposal | None = None,
    full: bool | None = None,
    random_state: int = 0,
) -> Proposal:
    r"""Fit the evaluation proposal on training rows: maximise the ELBO with p(z) and p(x given z) frozen.

    The scale starts by a search over powers of two, so encoders that are far too narrow (trained with a small
    KL weight) or deterministic are served; A, b and L follow by gradient steps with the entropy exact,
    stopped early on held-out rows; then the defensive component gets the largest width that costs little.

    Args:
        vae: the model to be scored; nothing in it changes.
        X_train: rows that are not scored, (N, *data_shape).
        max_steps: gradient steps at most.
        warm_start: a proposal of the same encoder under another prior, to go on from; refit after every prior
            swap.
        full: full or diagonal A and L; by default full up to 64 latents.
        random_state: seed.

    Returns:
        The proposal, in eval mode.

    Raises:
        InputError: fewer than 8 training rows.
    """
    batch = evaluation_rows(X_train, vae, "X_train").to(vae.device)
    n = len(batch)
    if n < 8:
        raise InputError(f"fit_proposal: X_train has {n} rows; at least 8 are needed, or leave X_train out.")
    order = np.random.default_rng(random_state).permutation(n)
    n_pilot = min(PILOT_ROWS, n // 4)
    batch_size = min(128, n - n_pilot)
    order = order[: n_pilot + max_steps * batch_size]  # no more rows than the steps can see
    batch = batch[torch.as_tensor(order, device=batch.x.device)]
    with frozen(vae, random_state=random_state):
        codes = encode_rows(vae, batch, random_state=random_state)
        dim = codes.mean[0].numel()
        if warm_start is None:
            proposal = Proposal(vae.event_shape, full=dim <= FULL_UP_TO if full is None else full)
            proposal.to(codes.mean)
            _set_units(proposal, codes)
        else:
            proposal = Proposal(vae.event_shape, full=warm_start.full, wide_share=warm_start.wide_share)
            proposal.to(codes.mean).load_state_dict(warm_start.state_dict())
        pilot = slice(0, n_pilot)
        judge = _Judge(vae, batch[pilot], codes[pilot], random_state)
        if warm_start is None:
            _search_scale(proposal, judge)
        if max_steps > 0:
            _descend(vae, proposal, batch[slice(n_pilot, None)], codes[slice(n_pilot, None)], judge, max_steps)
        _choose_width(vae, proposal, batch[slice(0, 64)], codes[slice(0, 64)], random_state)
    return proposal.eval().requires_grad_(False)


def encoder_proposal(vae: VAEModule, *, width: float = 1.5) -> Proposal:
    """The encoder itself with the widened defensive component, for where there are no training rows."""
    dim = vae.event_shape.numel()
    like = next((p for p in vae.parameters() if p.is_floating_point()), torch.empty(0))
    return Proposal(vae.event_shape, full=dim <= FULL_UP_TO, width=width).to(like).eval().requires_grad_(False)


def log_joint(vae: VAEModule, batch: Batch, z: Tensor) -> Tensor:
    """log p(x, z): z (S, N, *event_shape) -> (S, N), nats."""
    return vae.log_likelihood(batch, z) + vae.prior.log_prob(z, batch.context)


def negative_elbo(vae: VAEModule, proposal: Proposal, batch: Batch, codes: Codes, eps: Tensor) -> Tensor:
    """Minus the ELBO of the narrow component by antithetic draws eps (N, n, D): (N,), nats.

    Its gradient is the path derivative ("sticking the landing", Roeder et al. 2017, arXiv 1703.09194): the
    score of log e, whose mean is 0, is left out, so that the noise vanishes where the proposal is exact.
    """
    frame = proposal.frame(codes)
    u = torch.cat([eps, -eps], dim=1)
    placed = frame.place(u).transpose(0, 1)  # (2 n, N, D)
    entropy = frame.log_det + 0.5 * proposal.dim * (1 + LOG_2PI)
    value = -log_joint(vae, batch, placed.reshape(*placed.shape[:2], *proposal.event_shape)).mean(0) - entropy
    if not value.requires_grad:
        return value
    along = (placed * frame.slope(u).transpose(0, 1)).sum(-1).mean(0)
    # in place of the entropy's gradient, the path's through log e; the value stays
    return value + entropy - entropy.detach() + along - along.detach()


class _Judge:
    """The held-out objective, with the same noise each time it is asked."""

    def __init__(self, vae: VAEModule, batch: Batch, codes: Codes, random_state: int) -> None:
        self.vae, self.batch, self.codes = vae, batch, codes
        noise = RowNoise(len(codes), random_state, stream=101)
        dim = codes.mean[0].numel()
        self.eps = noise.draw(slice(0, len(codes)), 2, (dim,), codes.mean)

    @torch.no_grad()
    def __call__(self, proposal: Proposal) -> float:
        """Nats per row; infinite where it overflows."""
        value = float(negative_elbo(self.vae, proposal, self.batch, self.codes, self.eps).double().mean())
        return value if math.isfinite(value) else math.inf


def _set_units(proposal: Proposal, codes: Codes) -> None:
    """Steps of A and b in units of the posterior's scale; a scale of their own for units that have none."""
    mean, std = codes.mean.flatten(1), codes.std.flatten(1)
    spread = mean.std(0)
    positive = spread[spread > 0]
    typical = positive.median() if len(positive) else torch.ones((), dtype=mean.dtype, device=mean.device)
    spread = torch.where(spread > 1e-6 * typical, spread, typical)
    unit = std.median(0).values
    deterministic = (unit <= 1e-5 * spread) | (std.amin(0) <= 0)
    proposal.center.copy_(mean.mean(0))
    proposal.spread.copy_(spread)
    proposal.fixed_scale.copy_(torch.where(deterministic, 0.03 * spread, math.nan))
    proposal.unit.copy_(torch.where(deterministic, 0.03 * spread, unit))


@torch.no_grad()
def _search_scale(proposal: Proposal, judge: _Judge) -> None:
    """The best power of two for the scale of all units together, uphill from 1."""
    best, chosen = judge(proposal), 0.0
    for direction in (1.0, -1.0):
        for step in range(1, 16):
            proposal.log_scale.fill_(direction * step * math.log(2))
            value = judge(proposal)
            if not value < best:
                break
            best, chosen = value, direction * step * math.log(2)
        if chosen:
            break
    proposal.log_scale.fill_(chosen)
    proposal.unit.mul_(math.exp(chosen))


def _descend(vae: VAEModule, proposal: Proposal, batch: Batch, codes: Codes, judge: _Judge, max_steps: int) -> None:
    start = {key: value.clone() for key, value in proposal.state_dict().items()}
    at_start = judge(proposal)
    recipe = Recipe(
        max_steps=max_steps,
        batch_size=min(128, len(codes)),
        learning_rate=0.02,
        schedule="cosine",
        clip_norm=100.0,
        ema_decay=0.95,
        validate_every=50,
        patience=3,
        device=str(codes.mean.device),
    )

    def loss(picked: Batch, step: int) -> dict[str, Tensor]:
        part = codes[picked.index]
        # drawn inside the loop's own random state
        eps = torch.randn((len(part), 1, proposal.dim), dtype=part.mean.dtype, device=part.mean.device)
        return {"loss": negative_elbo(vae, proposal, picked, part, eps).mean()}

    rows = Rows(replace(batch, index=torch.arange(len(batch), device=batch.x.device)))
    minimise(proposal, loss, rows, recipe, validate=lambda: judge(proposal), what="the evaluation proposal")
    if not judge(proposal) <= at_start:  # noise must not cost what the encoder had
        proposal.load_state_dict(start)


@torch.no_grad()
def _choose_width(vae: VAEModule, proposal: Proposal, batch: Batch, codes: Codes, random_state: int) -> None:
    """The largest width that costs at most 5 % of the best width's effective sample size on pilot draws.

    Pilot weights see the tails badly: a width is protection, and is given up only for a visible gain.
    """
    eps = RowNoise(len(codes), random_state, stream=102).draw(
        slice(0, len(codes)), PILOT_DRAWS, (proposal.dim,), codes.mean
    )
    sizes = []
    for width in WIDTHS:
        proposal.width.fill_(width)
        z, log_e = proposal.draw(proposal.frame(codes), eps)
        log_w = (log_joint(vae, batch, z) - log_e).double()
        sizes.append(float((2 * log_w.logsumexp(0) - (2 * log_w).logsumexp(0)).mean()))
    enough = max(sizes) - 0.05
    proposal.width.fill_(max(width for width, size in zip(WIDTHS, sizes, strict=True) if size >= enough))
