"""A saved affine map that gives the latents mean 0 and covariance I before anything learned sees them."""

from __future__ import annotations

import torch
from torch import Tensor

from latentfit.errors import InputError
from latentfit.flows.bijection import Bijection


class Whitening(Bijection):
    r"""u = W (z - m) with W = chol(C)^{-1}, set from moments and never learned.

    Only W is stored and the inverse solves the triangular system, so that both directions agree in every
    dtype. Before `set_moments` the map is the identity.

    Args:
        features: D.
        full: use the covariances; otherwise only the variances, and W is diagonal.

    Example:
        >>> layer = Whitening(2)
        >>> layer.set_moments(torch.tensor([1.0, 2.0]), torch.tensor([[4.0, 0.0], [0.0, 9.0]]))
        >>> layer(torch.tensor([3.0, 5.0]))[0].round(decimals=3)
        tensor([1., 1.])
    """

    mean: Tensor
    weight: Tensor

    def __init__(self, features: int, full: bool = True) -> None:
        super().__init__(features)
        self.full = full
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("weight", torch.eye(features) if full else torch.ones(features))

    @torch.no_grad()
    def set_moments(self, mean: Tensor, covariance: Tensor, floor: float = 1e-6) -> None:
        """Set m and W from a mean (D,) and a covariance (D, D).

        Variances below `floor` times the largest are raised to it: a direction without variance has no scale.

        Raises:
            InputError: moments of another shape, or not finite.
        """
        size = (self.features, self.features)
        if mean.shape != size[:1] or covariance.shape != size:
            got = f"{tuple(mean.shape)} and {tuple(covariance.shape)}"
            raise InputError(f"Whitening of {self.features} features needs moments (D,) and (D, D), got {got}.")
        if not (torch.isfinite(mean).all() and torch.isfinite(covariance).all()):
            raise InputError("Whitening: the mean or covariance has entries that are not finite.")
        precise = covariance.detach().cpu().double()  # some accelerators have no float64
        variance = precise.diagonal()
        smallest = (floor * variance.max()).clamp_min(torch.finfo(torch.float32).tiny)
        if not self.full:
            self.weight.copy_(variance.clamp_min(smallest).rsqrt())
        else:
            precise = precise + smallest * torch.eye(self.features, dtype=precise.dtype)
            factor = torch.linalg.cholesky(precise)
            identity = torch.eye(self.features, dtype=precise.dtype)
            self.weight.copy_(torch.linalg.solve_triangular(factor, identity, upper=False))
        self.mean.copy_(mean)

    def forward(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        centred = z - self.mean
        u = centred @ self.weight.T if self.full else centred * self.weight
        return u, self._log_det().expand(z.shape[:-1])

    def inverse(self, u: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if not self.full:
            return u / self.weight + self.mean, self._log_det().expand(u.shape[:-1])
        columns = u.reshape(-1, self.features).T  # (D, R)
        z = torch.linalg.solve_triangular(self.weight, columns, upper=False).T.reshape(u.shape) + self.mean
        return z, self._log_det().expand(u.shape[:-1])

    def _log_det(self) -> Tensor:
        return (self.weight.diagonal() if self.full else self.weight).log().sum()
