"""What uncertain weights leave uncertain about the latents."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from latentfit.errors import CapabilityError, InputError
from latentfit.evaluation.codes import Codes
from latentfit.evaluation.collapse import active_units
from latentfit.evaluation.ladder import cross_fit
from latentfit.evaluation.local import refined_rows
from latentfit.evaluation.ood import drawn
from latentfit.evaluation.proposal import encoder_proposal, fit_proposal
from latentfit.evaluation.rows import as_models, blocks, evaluation_rows
from latentfit.model.contracts import LOG_2PI
from latentfit.model.vae import VAEModule

if TYPE_CHECKING:
    import pandas as pd

#: points of a marginal density, and how far beyond the outermost posterior, in its standard deviations
POINTS, BEYOND = 101, 3.0
#: rows at once
ROWS = 256
#: of a band, where the draws are many enough
LEVEL = 0.9


@dataclass(frozen=True)
class LatentDistribution:
    """The posteriors p(z given x, w_m) of N rows under M draws of the weights, as Gaussians, D flattened units.

    Attributes:
        mean: (N, D) of the mixture over draws.
        aleatoric: (N, D) mean over draws of the variance; epistemic: (N, D) variance over draws of the mean. They sum
            to the variance of the mixture; times M / (M - 1), `epistemic` estimates that of all weights without bias.
        information: (N,) mutual information of z and the draw, nats: entropy of the mixture minus mean entropy. From 0
            to log M, and below that of all weights: each draw is part of the mixture it is compared with.
        grid: (D, P) points; density: (M, D, P) marginal density of the aggregate posterior at them, of each draw.
    """

    mean: np.ndarray
    aleatoric: np.ndarray
    epistemic: np.ndarray
    information: np.ndarray
    grid: np.ndarray
    density: np.ndarray

    @property
    def share(self) -> float:
        """The epistemic share of the variance, over all rows and units."""
        return float(self.epistemic.sum() / (self.aleatoric.sum() + self.epistemic.sum()))

    def band(self, level: float | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Two curves (D, P) between which another draw's marginal density of q(z) lies with probability `level`.

        Args:
            level: at each point; by default 0.9, or what so few draws can reach, (M - 1) / (M + 1).

        Raises:
            InputError: a level that so few draws cannot reach, with how many can.
        """
        return _band(self.density, level)

    @property
    def table(self) -> pd.DataFrame:
        """One line for each row: information in nats, and the variances summed over units."""
        import pandas as pd

        aleatoric, epistemic = self.aleatoric.sum(1), self.epistemic.sum(1)
        share = epistemic / (aleatoric + epistemic)
        return pd.DataFrame(
            {"information": self.information, "aleatoric": aleatoric, "epistemic": epistemic, "epistemic_share": share}
        )

    def to_json(self) -> str:
        """All of it."""
        return json.dumps({name: np.asarray(value).tolist() for name, value in vars(self).items()})

    def __str__(self) -> str:
        return (
            f"{len(self.mean):,} rows, {len(self.density)} draws of the weights: {self.share:.1%} of the posterior "
            f"variance is epistemic, {self.information.mean():.2f} nats per row"
        )


@dataclass(frozen=True)
class LatentInvariants:
    """What does not depend on the coordinates of z, of each of M models.

    Attributes:
        spectrum: (M, D) eigenvalues of the aggregate posterior's covariance, largest first.
        active_units: (M,); prior_gap: (M,) T of the better of a Gaussian and a mixture, cross-fitted, nats per row.
    """

    spectrum: np.ndarray
    active_units: np.ndarray
    prior_gap: np.ndarray

    @property
    def level(self) -> float:
        """Of `band` by default: 0.9, or what so few models can reach."""
        return _level(len(self.prior_gap), None)

    def band(self, level: float | None = None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """By name, ends between which another model's value lies with probability `level`: see `LatentDistribution`."""
        return {name: _band(value, level) for name, value in vars(self).items()}

    @property
    def table(self) -> pd.DataFrame:
        """One line for each model."""
        import pandas as pd

        columns = {f"spectrum_{i}": values for i, values in enumerate(self.spectrum.T)}
        return pd.DataFrame({"prior_gap": self.prior_gap, "active_units": self.active_units, **columns})

    def to_json(self) -> str:
        """All of it."""
        return json.dumps({name: np.asarray(value).tolist() for name, value in vars(self).items()})

    def __str__(self) -> str:
        found = self.band()
        (low, high), (few, many) = found["prior_gap"], found["active_units"]
        return (
            f"{len(self.spectrum)} models: prior gap {low:.2f} to {high:.2f} nats, {few:.0f} to {many:.0f} active "
            f"units (where another would lie with probability {self.level:.0%})"
        )


def latent_distribution(
    vae: VAEModule | Sequence[VAEModule],
    X: Any,
    *,
    draws: int | None = None,
    X_train: Any = None,
    n_samples: int = 20,
    refinement_steps: int = 100,
    random_state: int = 0,
) -> LatentDistribution:
    r"""The posterior of the latents with what is uncertain about it, because the weights are.

        Var[z | x] = E_w Var[z | x, w] + Var_w E[z | x, w],   I(z; w | x) = H[E_w p(z | x, w)] - E_w H[p(z | x, w)]

    For each draw of the weights p(z given x, w) is the encoder's Gaussian refined on the row under that draw's decoder:
    the best Gaussian, not the encoder's amortised one, which would not know of the decoder's weights. The first part is
    aleatoric (z is not determined by x), the second epistemic (the weights are not determined by the data). The
    information is a mean over `n_samples` draws of z from each component.

    N(0, I) does not change under rotations, so two VAEs trained apart have different coordinates, and a variance
    between them is meaningless. One encoder for all draws, or draws around one trained encoder, is needed.

    Args:
        vae: a VAE with a distribution over its weights, or several VAEs with one encoder.
        X: (N, *data_shape).
        draws: M; `vae.n_draws` by default.
        X_train: rows to fit the proposal on that the refinement starts from; without, the encoder itself.
        n_samples: of z, per row and draw, for the entropies.
        refinement_steps: see `log_likelihood`; at least 1.
        random_state: seed.

    Raises:
        CapabilityError: models whose coordinates are not shared; `latent_invariants` takes them.
        InputError: fewer than two draws.

    Source: the decomposition of Depeweg et al. 2018 (arXiv 1710.07283).
    """
    _refuse_other_coordinates(vae)
    codes = _posteriors(drawn(vae, draws, random_state), X, X_train, refinement_steps, random_state)
    if len(codes) < 2:
        raise InputError("latent_distribution compares draws of the weights: give a Bayesian VAE or several VAEs.")
    means = torch.stack([c.mean for c in codes]).double()  # (M, N, D)
    variances = torch.stack([c.std for c in codes]).double().square()
    grid, density = _marginals(means, variances)
    return LatentDistribution(
        mean=means.mean(0).numpy(),
        aleatoric=variances.mean(0).numpy(),
        epistemic=means.var(0, correction=0).numpy(),
        information=_information(codes, n_samples, random_state),
        grid=grid.numpy(),
        density=density.numpy(),
    )


def latent_invariants(
    vae: VAEModule | Sequence[VAEModule],
    X: Any,
    *,
    draws: int | None = None,
    X_train: Any = None,
    refinement_steps: int = 100,
    random_state: int = 0,
) -> LatentInvariants:
    """Bands on what no rotation of z changes: for VAEs trained apart, which share no coordinates.

    Args: as of `latent_distribution`; X needs at least 20 rows.
    """
    models = drawn(vae, draws, random_state)
    spectrum, active, gaps = [], [], []
    for model, codes in zip(models, _posteriors(models, X, X_train, refinement_steps, random_state), strict=True):
        spread = codes.std.double().square().mean(0).diag()
        if codes.scale_tril is not None:
            spread = (codes.scale_tril.double() @ codes.scale_tril.double().mT).mean(0)
        covariance = torch.cov(codes.mean.double().T) + spread
        spectrum.append(torch.linalg.eigvalsh(covariance).flip(0).numpy())
        active.append(int(active_units(codes)))
        ladder = cross_fit(codes, model.prior, rungs=("learned_gaussian", "mixture"), random_state=random_state)
        gaps.append(float(ladder.best.gap))
    return LatentInvariants(np.stack(spectrum), np.array(active), np.array(gaps))


def _refuse_other_coordinates(vae: VAEModule | Sequence[VAEModule]) -> None:
    models = as_models(vae)
    apart = len(models) > 1 and any(model.encoder is not models[0].encoder for model in models)
    members = len(models) == 1 and not getattr(models[0].encoder, "shares_coordinates", True)
    if apart or members:
        raise CapabilityError(
            "latent_distribution: these encoders were trained apart, so their latent coordinates differ by rotations "
            "that N(0, I) leaves open, and a variance between them means nothing. latent_invariants(...) gives bands "
            "on what they share."
        )


def _posteriors(models: Sequence[VAEModule], X: Any, X_train: Any, steps: int, random_state: int) -> list[Codes]:
    """The refined Gaussian of every row under every model, flattened to (N, D), on the CPU."""
    if steps < 1:
        raise InputError(f"refinement_steps must be at least 1, got {steps}.")
    found = []
    proposal = None
    for model in models:
        if proposal is None or model.encoder is not models[0].encoder:
            proposal = (
                encoder_proposal(model) if X_train is None else fit_proposal(model, X_train, random_state=random_state)
            )
        batch = evaluation_rows(X, model)
        frame = refined_rows(model, batch, proposal, random_state=random_state, steps=steps)
        scale = frame.own.detach().cpu()
        full = scale.dim() == 3
        std = scale.square().sum(-1).sqrt() if full else scale
        found.append(Codes(frame.location.detach().cpu(), std, scale_tril=scale if full else None))
    return found


def _log_normal(codes: Codes, rows: slice, z: Tensor) -> Tensor:
    """log N(z; m, S S^T) of the rows' Gaussians: z (S, R, D) -> (S, R), float64."""
    offset = z - codes.mean[rows].double()
    if codes.scale_tril is None:
        scale = codes.std[rows].double()
        u, log_det = offset / scale, scale.log().sum(-1)
    else:
        lower = codes.scale_tril[rows].double()
        u = torch.linalg.solve_triangular(lower, offset.movedim(0, -1), upper=False).movedim(-1, 0)
        log_det = lower.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
    return -0.5 * u.square().sum(-1) - log_det - 0.5 * z.shape[-1] * LOG_2PI


def _information(codes: Sequence[Codes], n_samples: int, random_state: int) -> np.ndarray:
    """log M - E_z[entropy of the draw given z], which is I(z; draw), z from the mixture: (N,).

    Unbiased as E[log p(z given x, w) - log mixture] is, with less noise and never below 0.
    """
    generator = torch.Generator().manual_seed(random_state)
    result = []
    for rows in blocks(len(codes[0].mean), ROWS):
        unknown = []
        for own in codes:
            mean = own.mean[rows].double()
            eps = torch.randn((n_samples, *mean.shape), dtype=torch.float64, generator=generator)
            if own.scale_tril is None:
                z = mean + own.std[rows].double() * eps
            else:
                z = mean + (own.scale_tril[rows].double() @ eps.unsqueeze(-1)).squeeze(-1)
            log_draw = torch.stack([_log_normal(other, rows, z) for other in codes]).log_softmax(0)  # (M, S, R)
            unknown.append(torch.special.entr(log_draw.exp()).sum(0).mean(0))
        result.append(math.log(len(codes)) - torch.stack(unknown).mean(0))
    return torch.cat(result).clamp(min=0).numpy()  # rounding


def _level(n_draws: int, level: float | None) -> float:
    most = (n_draws - 1) / (n_draws + 1)  # of n + 1 exchangeable values, the last is neither least nor greatest
    if level is None:
        return min(LEVEL, most)
    if not 0 < level <= most + 1e-9:
        enough = f"; {math.ceil(round((1 + level) / (1 - level), 6))} draws would do" if most < level < 1 else ""
        raise InputError(f"band: {n_draws} draws give a level above 0 and at most {most:.2f}, got {level}{enough}.")
    return level


def _band(values: np.ndarray, level: float | None) -> tuple[np.ndarray, np.ndarray]:
    """Ends between which one more of exchangeable draws lies with probability `level`: (M, ...) -> two of (...).

    The quantiles of M draws at (1 +- level) / 2 as such would hold one more draw less often: of 10 draws 74 %, not 90.
    """
    level = _level(len(values), level)
    # of the order statistics u, E[F(u_i)] = i / (M + 1)
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0, method="weibull")
    return low, high


def _marginals(means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Points (D, P) and the marginal density of the aggregate posterior at them, of each draw (M, D, P)."""
    spread = variances.sqrt()
    low = (means - BEYOND * spread).amin((0, 1))
    high = (means + BEYOND * spread).amax((0, 1))
    grid = low[:, None] + (high - low)[:, None] * torch.linspace(0, 1, POINTS, dtype=low.dtype)  # (D, P)
    density = torch.zeros(len(means), *grid.shape, dtype=low.dtype)
    for m, (mean, std) in enumerate(zip(means, spread, strict=True)):
        for rows in blocks(len(mean), ROWS):
            u = (grid - mean[rows, :, None]) / std[rows, :, None]  # (R, D, P)
            density[m] += ((-0.5 * u.square()).exp() / (std[rows, :, None] * math.sqrt(2 * math.pi))).sum(0)
    return grid, density / means.shape[1]
