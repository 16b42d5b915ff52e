"""Gaussian q(z given x) as objects that draw, score and give their moments."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from latentfit.model.contracts import LOG_2PI, LatentDistribution, Prior
from latentfit.training.rng import standard_normal


class DiagonalGaussian(LatentDistribution):
    r"""N(mean, diag std^2) for each of N rows.

    Args:
        mean: (N, *event).
        std: like mean, positive.
        log_std: log std where it is known already, which saves a logarithm and its gradient.

    Example:
        >>> q = DiagonalGaussian(torch.zeros(5, 2), torch.ones(5, 2))
        >>> z, log_q = q.rsample_with_log_prob(3)
        >>> z.shape, log_q.shape
        (torch.Size([3, 5, 2]), torch.Size([3, 5]))
    """

    can_score = True
    factorised = True

    def __init__(self, mean: Tensor, std: Tensor, log_std: Tensor | None = None) -> None:
        self.mean, self.std = mean, std
        self.log_std = std.log() if log_std is None else log_std

    def rsample_with_log_prob(self, n: int = 1, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        noise = standard_normal((n, *self.mean.shape), self.mean, generator)  # (S, N, *event)
        # scored by the noise: (z - mean) / std would lose digits and cost a division
        return torch.addcmul(self.mean, self.std, noise), self._log_normaliser() - 0.5 * _energy(noise)

    def log_prob(self, z: Tensor) -> Tensor:
        return self._log_normaliser() - 0.5 * _energy((z - self.mean) / self.std)

    def moments(self) -> tuple[Tensor, Tensor]:
        return self.mean, self.std.square()

    def cache(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "std": self.std}

    def kl(self, prior: Prior) -> Tensor | None:
        return prior.analytic_kl(self.mean, self.std)

    def unit_kl(self, prior: Prior) -> Tensor | None:
        return prior.analytic_unit_kl(self.mean, self.std)

    def unit_log_prob(self, z: Tensor) -> Tensor:
        return -0.5 * (((z - self.mean) / self.std).square() + LOG_2PI) - self.log_std

    def _log_normaliser(self) -> Tensor:
        """The log-density at the mean: (N,)."""
        dim = self.mean[0].numel()
        return -self.log_std.flatten(1).sum(-1) - 0.5 * LOG_2PI * dim


class FullGaussian(LatentDistribution):
    r"""N(mean, L L^T) for each of N rows.

    Args:
        mean: (N, *event), D = numel(event).
        scale_tril: L (N, D, D), lower triangular with a positive diagonal.

    Example:
        >>> q = FullGaussian(torch.zeros(5, 2), torch.eye(2).expand(5, 2, 2))
        >>> q.moments()[1].shape
        torch.Size([5, 2])
    """

    can_score = True
    factorised = False

    def __init__(self, mean: Tensor, scale_tril: Tensor) -> None:
        self.mean, self.scale_tril = mean, scale_tril

    def rsample_with_log_prob(self, n: int = 1, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        rows, dim = self.scale_tril.shape[:2]
        noise = standard_normal((n, rows, dim), self.mean, generator)
        offset = torch.einsum("nij,snj->sni", self.scale_tril, noise)
        z = self.mean + offset.view(n, *self.mean.shape)
        return z, self._log_normaliser() - 0.5 * noise.square().sum(-1)

    def log_prob(self, z: Tensor) -> Tensor:
        offset = (z - self.mean).flatten(2).movedim(0, -1)  # (N, D, S)
        noise = torch.linalg.solve_triangular(self.scale_tril, offset, upper=False)
        return self._log_normaliser() - 0.5 * noise.square().sum(1).T

    def moments(self) -> tuple[Tensor, Tensor]:
        return self.mean, self.scale_tril.square().sum(-1).view_as(self.mean)

    def cache(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "std": self.moments()[1].sqrt(), "scale_tril": self.scale_tril}

    def _log_normaliser(self) -> Tensor:
        diagonal = self.scale_tril.diagonal(dim1=-2, dim2=-1)
        return -diagonal.log().sum(-1) - 0.5 * LOG_2PI * diagonal.shape[-1]


def _energy(noise: Tensor) -> Tensor:
    """Sum of squares over the event: (S, N, *event) -> (S, N)."""
    return noise.square().flatten(2).sum(-1)


#: log-variances are clamped to this range: a standard deviation from e^-10 to e^5. Below it float32 cannot
#: hold mean + std * noise anyway; above it one row would overflow exp
LOG_VARIANCE_RANGE = (-20.0, 10.0)


def log_std_of(log_variance: Tensor) -> Tensor:
    """Half the log-variance, clamped to `LOG_VARIANCE_RANGE`."""
    return 0.5 * log_variance.clamp(*LOG_VARIANCE_RANGE)
