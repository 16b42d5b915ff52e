"""One Gaussian with learned moments: the smallest remedy."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Generator, Tensor, nn

from latentfit.flows.mixing import lower_index, unpack_lower
from latentfit.model.contracts import LOG_2PI, Prior, Shape, as_shape
from latentfit.model.rows import CodeRows, FitOptions
from latentfit.priors.moments import exact_moments
from latentfit.training.rng import standard_normal


class LearnedGaussianPrior(Prior):
    r"""p(z) = N(m, C) with C^{-1} = W^T W: log p(z) = log det W - |W (z - m)|^2 / 2 - D log(2 pi) / 2.

    W is lower triangular with a positive diagonal, so a density costs one matrix product. Starts at N(0, I);
    learned jointly, or fitted in closed form to the exact moments of q(z). A context is not used.

    Args:
        latent_dim: D, or a shape (flattened in C order where covariance is full).
        covariance: "full" or "diagonal".

    Source: empirical Bayes with one Gaussian; Casale et al. (2018), arXiv:1810.11738, use a structured one.

    Example:
        >>> mean = torch.tensor([[0.0], [2.0]]) + 5
        >>> prior = LearnedGaussianPrior(1).fit(mean, std=torch.ones(2, 1))
        >>> prior.mean.item(), round(prior.variance().item(), 4)
        (6.0, 2.0)
    """

    below: Tensor

    def __init__(self, latent_dim: Shape, covariance: Literal["full", "diagonal"] = "full") -> None:
        super().__init__(latent_dim)
        dim = self.event_shape.numel()
        self.covariance = covariance
        self.mean = nn.Parameter(torch.zeros(dim))
        self.log_diagonal = nn.Parameter(torch.zeros(dim))  # of W
        if covariance == "full":
            self.register_buffer("below", lower_index(dim), persistent=False)
            self.lower = nn.Parameter(torch.zeros(dim * (dim - 1) // 2))

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        offset = z.flatten(-len(self.event_shape)) - self.mean
        u = offset @ self._factor().T if self.covariance == "full" else offset * self.log_diagonal.exp()
        return self.log_diagonal.sum() - 0.5 * (u.square().sum(-1) + u.shape[-1] * LOG_2PI)

    @torch.no_grad()
    def sample(self, n: Shape, context: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        shape = as_shape(n)
        noise = standard_normal((shape.numel(), self.event_shape.numel()), self.mean, generator)
        if self.covariance == "full":
            offset = torch.linalg.solve_triangular(self._factor(), noise.T, upper=False).T
        else:
            offset = noise / self.log_diagonal.exp()
        return (self.mean + offset).reshape(*shape, *self.event_shape)

    def variance(self) -> Tensor:
        """Variance per dimension: (*event_shape)."""
        if self.covariance == "diagonal":
            return (-2 * self.log_diagonal).exp().view(self.event_shape)
        identity = torch.eye(len(self.mean), dtype=self.mean.dtype, device=self.mean.device)
        factor = torch.linalg.solve_triangular(self._factor(), identity, upper=False)
        return factor.square().sum(-1).view(self.event_shape)

    def analytic_kl(self, mean: Tensor, std: Tensor) -> Tensor:
        """KL(N(mean, std^2) || N(m, C)) per row: (..., *event) -> (...)."""
        mean, std = (t.flatten(-len(self.event_shape)) for t in (mean, std))
        offset = mean - self.mean
        if self.covariance == "full":
            factor = self._factor()
            u, precision = offset @ factor.T, factor.square().sum(0)
        else:
            u, precision = offset * self.log_diagonal.exp(), (2 * self.log_diagonal).exp()
        quadratic = u.square().sum(-1) + std.square() @ precision
        return 0.5 * (quadratic - mean.shape[-1]) - self.log_diagonal.sum() - std.log().sum(-1)

    def analytic_unit_kl(self, mean: Tensor, std: Tensor) -> Tensor | None:
        if self.covariance == "full":
            return None
        centre, log_scale = self.mean.view(self.event_shape), -self.log_diagonal.view(self.event_shape)
        u, ratio = (mean - centre) / log_scale.exp(), std / log_scale.exp()
        return 0.5 * (u.square() + ratio.square() - 1) - ratio.log()

    def unit_log_prob(self, z: Tensor) -> Tensor | None:
        if self.covariance == "full":
            return None
        log_precision = self.log_diagonal.view(self.event_shape)
        u = (z - self.mean.view(self.event_shape)) * log_precision.exp()
        return log_precision - 0.5 * (u.square() + LOG_2PI)

    @torch.no_grad()
    def fit_rows(self, rows: CodeRows, options: FitOptions) -> None:
        """Set the moments to those of q(z), in closed form (see `exact_moments`); nothing is random."""
        if self.covariance == "diagonal":  # by coordinates: a large spatial latent has no (D, D) matrix
            centre = rows.mean.mean(0)
            variance = (rows.mean - centre).square().mean(0) + rows.std.square().mean(0)
            self.log_diagonal.copy_(-0.5 * floored(variance).log())
        else:
            centre, covariance = exact_moments(rows)
            dim = len(centre)
            jitter = floored(covariance.diagonal()) - covariance.diagonal()
            factor = torch.linalg.cholesky(covariance + torch.diag(jitter))
            inverse = torch.linalg.solve_triangular(factor, torch.eye(dim, dtype=factor.dtype), upper=False)
            self.log_diagonal.copy_(inverse.diagonal().log())
            self.lower.copy_(inverse.flatten()[lower_index(dim)])
        self.mean.copy_(centre)

    def _factor(self) -> Tensor:
        return unpack_lower(self.log_diagonal.exp(), self.lower, self.below)


def floored(variance: Tensor) -> Tensor:
    """Variances raised to 1e-8 of the largest: a constant coordinate has no density."""
    return variance.clamp_min((1e-8 * variance.max()).clamp_min(1e-30))
