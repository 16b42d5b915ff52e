"""What posteriors made of a normalizing flow share: a Gaussian base, a flow with context, moments by draws."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Generator, Tensor

from latentfit.data.batch import Batch
from latentfit.errors import InputError
from latentfit.flows.bijection import Bijection
from latentfit.model.contracts import LatentDistribution, Posterior, Shape
from latentfit.posteriors.diagonal import check_parameters
from latentfit.posteriors.gaussian import DiagonalGaussian, log_std_of

#: moments are averages over 2 max(this, D) draws
MOMENT_PAIRS = 32
#: draws that pass through the flow at once for moments
BLOCK_DRAWS = 65_536


class FlowDistribution(LatentDistribution):
    r"""The law of z = f(u; h), u ~ N(mean, diag std^2), for each of N rows:

        log q(z) = log N(u; mean, diag std^2) - log |det df/du|.

    The flow's `forward` is the direction in which draws are made, so that training calls it alone.

    Args:
        base: of N rows, over the flattened latent (N, D).
        flow: f.
        features: h (N, C), what conditions it.
        event_shape: of z.
        can_score: whether the flow has an inverse to score any z with.
        parameters: (N, P), what the encoder gave.
    """

    factorised = False

    def __init__(
        self,
        base: DiagonalGaussian,
        flow: Bijection,
        features: Tensor,
        event_shape: torch.Size,
        can_score: bool,
        parameters: Tensor,
    ) -> None:
        self.base, self.flow, self.features, self.parameters = base, flow, features, parameters
        self.event_shape, self.can_score = event_shape, can_score

    def rsample_with_log_prob(self, n: int = 1, generator: Generator | None = None) -> tuple[Tensor, Tensor]:
        u, log_q = self.base.rsample_with_log_prob(n, generator)  # (S, N, D), (S, N)
        z, log_det = self.flow(u, self.features)
        return z.unflatten(-1, self.event_shape), log_q - log_det

    def log_prob(self, z: Tensor) -> Tensor:
        if not self.can_score:
            return super().log_prob(z)
        u, log_det = self.flow.inverse(z.flatten(2), self.features)
        return self.base.log_prob(u) - log_det

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance per dimension by 2 max(32, D) draws, the same in every call and for every row.

        The base's noise is antithetic with covariance I exactly, so that the moments are exact where the flow is
        affine; elsewhere their error is that of as many draws at most.
        """
        return self._moments

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        noise = _matched_noise(self.base.mean).unsqueeze(1)  # (S, 1, D)
        mean, square = torch.zeros_like(self.base.mean), torch.zeros_like(self.base.mean)
        for part in noise.split(max(1, BLOCK_DRAWS // len(mean))):
            z, _ = self.flow(torch.addcmul(self.base.mean, self.base.std, part), self.features)
            offset = z - self.base.mean  # from a point near the mean: squares of z itself would cancel
            mean, square = mean + offset.sum(0), square + offset.square().sum(0)
        mean, square = mean / len(noise), square / len(noise)
        variance = (square - mean.square()).clamp_min(torch.finfo(mean.dtype).tiny)
        shape = (-1, *self.event_shape)
        return (self.base.mean + mean).view(shape), variance.view(shape)

    def cache(self) -> dict[str, Tensor]:
        mean, variance = self.moments()
        return {"mean": mean, "std": variance.sqrt(), "parameters": self.parameters}


class FlowPosterior(Posterior):
    """A posterior with a flow behind a diagonal Gaussian; the encoder gives D means, D log-variances and C features h.

    The log-variances are clamped to [-20, 10]. Implement the constructor, which sets `flow`, and `can_score`.
    """

    flow: Bijection
    #: whether the flow has an inverse to score any z with
    can_score: bool = False

    def __init__(self, latent_dim: Shape, context_features: int) -> None:
        super().__init__(latent_dim)
        if context_features < 1:
            raise InputError(f"context_features must be at least 1, got {context_features}.")
        self.dim = self.event_shape.numel()
        self.context_features = context_features
        self.n_parameters = 2 * self.dim + context_features

    def forward(self, parameters: Tensor, batch: Batch | None = None) -> FlowDistribution:
        check_parameters(self, parameters)
        mean, log_variance, features = parameters.split((self.dim, self.dim, self.context_features), -1)
        log_std = log_std_of(log_variance)
        base = DiagonalGaussian(mean, log_std.exp(), log_std)
        return FlowDistribution(base, self.flow, features, self.event_shape, self.can_score, parameters)


def _matched_noise(like: Tensor) -> Tensor:
    """Draws (S, D) of N(0, I) from a fixed generator, made to have mean 0 and covariance I: like (N, D)."""
    dim = like.shape[1]
    pairs = max(MOMENT_PAIRS, dim)
    draws = torch.randn(pairs, dim, generator=Generator().manual_seed(0), dtype=torch.float64)
    half = torch.linalg.qr(draws).Q * pairs**0.5  # orthonormal columns
    return torch.cat((half, -half)).to(like)
