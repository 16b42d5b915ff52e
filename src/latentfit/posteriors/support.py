"""Posteriors whose draws lie where a target lies: in a cube, on a sphere, on the simplex."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Generator, Tensor

from latentfit.data.batch import Batch
from latentfit.errors import CapabilityError, InputError
from latentfit.model.contracts import LOG_2PI, LatentDistribution, Posterior, Shape
from latentfit.posteriors.diagonal import check_parameters
from latentfit.posteriors.gaussian import DiagonalGaussian, log_std_of

Support = Literal["square", "sphere", "simplex"]

#: fixed points of N(0, I) that give the moments
MOMENT_POINTS = 256


class SupportPosterior(Posterior):
    r"""z = g(u), u ~ N(mean(x), diag s(x)^2), with g onto the support of a target that is no R^D.

    * "square": z_d = Phi(u_d), the cube (0, 1)^D; N(0, 1) becomes the uniform
    * "sphere": z = u / |u|, |z| = 1; no density in D dimensions, so it is for matching penalties at KL weight 0
    * "simplex": z = softmax(u, 0), D numbers above 0 of sum 1; densities are with respect to the first D - 1, as in
      `torch.distributions.Dirichlet`

    The encoder gives means, then log-variances, of u: D of each, for the simplex D - 1.

    Args:
        latent_dim: D, at least 2 for the sphere and the simplex.
        support: one of these.

    Raises:
        InputError: another support, or too few dimensions.

    Source: Aitchison & Shen (1980), Biometrika 67, for the simplex.

    Example:
        >>> q = SupportPosterior(3, "simplex")(torch.zeros(5, 4))
        >>> z, log_q = q.rsample_with_log_prob(2)
        >>> z.shape, bool(torch.allclose(z.sum(-1), torch.ones(2, 5)))
        (torch.Size([2, 5, 3]), True)
    """

    def __init__(self, latent_dim: Shape, support: Support) -> None:
        super().__init__(latent_dim)
        if support not in ("square", "sphere", "simplex"):
            raise InputError(f"support must be 'square', 'sphere' or 'simplex', got {support!r}.")
        dim = self.event_shape.numel()
        if support != "square" and (len(self.event_shape) != 1 or dim < 2):
            raise InputError(f"The {support} needs latent_dim of at least 2, one number; got {latent_dim!r}.")
        self.support = support
        self.n_parameters = 2 * (dim - 1 if support == "simplex" else dim)

    def forward(self, parameters: Tensor, batch: Batch | None = None) -> Mapped:
        check_parameters(self, parameters)
        mean, log_variance = parameters.chunk(2, -1)
        if self.support == "square":
            mean, log_variance = (t.view(-1, *self.event_shape) for t in (mean, log_variance))
        log_std = log_std_of(log_variance)
        return Mapped(DiagonalGaussian(mean, log_std.exp(), log_std), self.support)


class Mapped(LatentDistribution):
    """g(u) of N rows, u a diagonal Gaussian.

    Args:
        base: of u, (N, K).
        support: which g.
    """

    def __init__(self, base: DiagonalGaussian, support: Support) -> None:
        self.base, self.support = base, support
        self.factorised = support == "square"
        self.can_score = self.has_density = support != "sphere"

    def rsample_with_log_prob(self, n: int = 1, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        u, log_q = self.base.rsample_with_log_prob(n, generator)
        return self._map(u), log_q - self._log_det(u)

    def log_prob(self, z: Tensor) -> Tensor:
        if self.support == "sphere":
            raise CapabilityError("The density of a Gaussian projected on the sphere is not known.")
        u = self._inverse(z)
        return self.base.log_prob(u) - self._log_det(u)

    def unit_log_prob(self, z: Tensor) -> Tensor | None:
        if self.support != "square":
            return None
        u = self._inverse(z)
        return self.base.unit_log_prob(u) + 0.5 * (u.square() + LOG_2PI)

    def moments(self) -> tuple[Tensor, Tensor]:
        """By fixed points of N(0, I), antithetic, to about 1 % of the standard deviation."""
        noise = _points(self.base.mean[0].numel()).to(self.base.mean).view(-1, 1, *self.base.mean.shape[1:])
        z = self._map(self.base.mean + self.base.std * noise)  # (P, N, *E)
        return z.mean(0), z.var(0, correction=0)

    def cache(self) -> dict[str, Tensor]:
        mean, variance = self.moments()
        # no Gaussian of this mean and std, which the third tensor tells
        return {"mean": mean, "std": variance.sqrt(), "support_mean": self.base.mean}

    def _map(self, u: Tensor) -> Tensor:
        if self.support == "square":
            # off the border, where the inverse and the density end
            tiny = torch.finfo(u.dtype).eps
            return torch.special.ndtr(u).clamp(tiny, 1 - tiny)
        if self.support == "sphere":
            return torch.nn.functional.normalize(u, dim=-1)
        return torch.cat([u, torch.zeros_like(u[..., :1])], -1).softmax(-1)

    def _inverse(self, z: Tensor) -> Tensor:
        if self.support == "square":
            return torch.special.ndtri(z)
        return z[..., :-1].log() - z[..., -1:].log()

    def _log_det(self, u: Tensor) -> Tensor:
        """log |dz/du|: (S, N, *K) -> (S, N)."""
        if self.support == "square":
            return (-0.5 * (u.square() + LOG_2PI)).flatten(2).sum(-1)
        if self.support == "simplex":
            return torch.cat([u, torch.zeros_like(u[..., :1])], -1).log_softmax(-1).sum(-1)
        return torch.full(u.shape[:2], math.nan, dtype=u.dtype, device=u.device)


def _points(dim: int) -> Tensor:
    """(MOMENT_POINTS, dim): the same in every call, each with its mirror image."""
    half = torch.randn(MOMENT_POINTS // 2, dim, generator=Generator().manual_seed(0))
    if dim <= torch.quasirandom.SobolEngine.MAXDIM:
        engine = torch.quasirandom.SobolEngine(dim, scramble=True, seed=0)
        half = torch.special.ndtri(engine.draw(MOMENT_POINTS // 2).double().clamp(1e-6, 1 - 1e-6)).float()
    return torch.cat([half, -half])
