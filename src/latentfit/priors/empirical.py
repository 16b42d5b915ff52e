"""A distribution that is known only by its samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from latentfit.errors import CapabilityError, InputError
from latentfit.model.contracts import Density, Prior, Shape, as_shape
from latentfit.priors.foreign import generator_as_global, takes_argument


class EmpiricalPrior(Prior):
    r"""p(z) given by samples or a sampler; it has no density, so it serves as a target for matching penalties only.

    Where only a density is known, `from_density` draws the samples.

    Args:
        latent_dim: D, or a shape.
        sampler: a function n -> (n, *event_shape); if it takes `generator`, it is given it. It is a user's own: a
            saved prior asks for it again.
        samples: (n_samples, *event_shape), drawn from with replacement and saved with the prior.
        n_samples: how many there are, where they will be loaded.

    Raises:
        InputError: not exactly one of sampler and samples, or samples of another shape.

    Example:
        >>> ring = lambda n: torch.nn.functional.normalize(torch.randn(n, 2), dim=-1)
        >>> EmpiricalPrior(2, ring).sample(5).shape
        torch.Size([5, 2])
        >>> EmpiricalPrior(2, samples=ring(100)).sample((5, 3)).shape
        torch.Size([5, 3, 2])
    """

    density: Density = "none"
    samples: Tensor

    def __init__(
        self,
        latent_dim: Shape,
        sampler: Callable[..., Any] | None = None,
        samples: Any = None,
        n_samples: int | None = None,
    ) -> None:
        super().__init__(latent_dim)
        if (sampler is not None) + (samples is not None) + (samples is None and n_samples is not None) != 1:
            raise InputError("EmpiricalPrior needs exactly one of sampler and samples.")
        self.sampler = sampler
        self._takes_generator = sampler is not None and takes_argument(sampler, "generator")
        if sampler is None:
            shape = (n_samples or 0, *self.event_shape)
            rows = torch.zeros(shape) if samples is None else torch.as_tensor(samples).detach().to(torch.float32)
            if rows.shape[1:] != self.event_shape or len(rows) < 1:
                wanted = f"(n, {', '.join(map(str, self.event_shape))})"
                raise InputError(f"EmpiricalPrior: samples have shape {tuple(rows.shape)}; expected {wanted}.")
            if not torch.isfinite(rows).all():
                raise InputError("EmpiricalPrior: samples have entries that are not finite.")
            self.register_buffer("samples", rows.clone())

    @classmethod
    def from_density(
        cls,
        log_density: Callable[[Tensor], Tensor],
        latent_dim: int,
        n_samples: int = 10_000,
        scale: float = 3.0,
        random_state: int = 0,
    ) -> EmpiricalPrior:
        r"""Samples of a density known up to a factor, by annealing from N(0, scale^2 I) to it.

        Particles are reweighted along p_0^(1 - b) p^b, with the steps of b set so that half of them stay effective,
        resampled, and moved by random walks of their own covariance: modes far apart keep their shares, in a few
        dimensions.

        Args:
            log_density: (n, D) -> (n,), nats, up to a constant; -inf outside the support.
            latent_dim: D.
            n_samples: particles, the samples that are kept.
            scale: wide enough to cover the support.
            random_state: of everything drawn.

        Raises:
            InputError: a log-density that is not one number per row, or is nowhere finite.

        Source: Del Moral, Doucet & Jasra (2006), Journal of the Royal Statistical Society B 68.

        Example:
            >>> log_ring = lambda z: -50 * (z.norm(dim=-1) - 1).square()
            >>> z = EmpiricalPrior.from_density(log_ring, 2, n_samples=2_000).sample(1_000)
            >>> round(z.norm(dim=-1).mean().item(), 1)
            1.0
        """
        return cls(latent_dim, samples=_annealed_samples(log_density, latent_dim, n_samples, scale, random_state))

    def config(self) -> dict[str, Any]:
        if self.sampler is not None:
            return super().config()
        event: Any = list(self.event_shape) if len(self.event_shape) > 1 else self.event_shape[0]
        return {"name": self.name, "args": {"latent_dim": event, "n_samples": len(self.samples)}}

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        raise CapabilityError(
            "This prior is known by samples only and has no density: use a matching penalty (mmd, "
            "sliced_wasserstein) at KL weight 0, or fit a prior with a density to its samples."
        )

    def sample(self, n: Shape, context: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        shape = as_shape(n)
        if self.sampler is None:
            stored = self.samples
            device = stored.device if generator is None else generator.device
            rows = torch.randint(len(stored), (shape.numel(),), generator=generator, device=device)
            return stored[rows.to(stored.device)].reshape(*shape, *self.event_shape)
        if self._takes_generator:
            z = self.sampler(shape.numel(), generator=generator)
        else:
            with generator_as_global(generator):
                z = self.sampler(shape.numel())
        if z.shape != (shape.numel(), *self.event_shape):
            wanted = (shape.numel(), *self.event_shape)
            raise InputError(f"The sampler returned {tuple(z.shape)} for n = {shape.numel()}; expected {wanted}.")
        return z.reshape(*shape, *self.event_shape)


#: random-walk moves after each resampling
MOVES = 10


def _annealed_samples(
    log_density: Callable[[Tensor], Tensor], dim: int, n: int, scale: float, random_state: int
) -> Tensor:
    """(n, dim) particles of a sequential Monte Carlo sampler."""
    generator = torch.Generator().manual_seed(random_state)

    def normal() -> Tensor:
        return torch.randn(n, dim, generator=generator)

    def start(z: Tensor) -> Tensor:
        return -0.5 * (z / scale).square().sum(-1)

    def target(z: Tensor) -> Tensor:
        with torch.no_grad():
            log_p = torch.as_tensor(log_density(z))
        if log_p.shape != (n,) or log_p.isnan().any():
            raise InputError(f"from_density: log_density gave {tuple(log_p.shape)} for z {tuple(z.shape)}, or nan.")
        return log_p.to(z)

    z = scale * normal()
    at_start, at_target, b = start(z), target(z), 0.0
    if not torch.isfinite(at_target).any():
        raise InputError(f"from_density: the density is 0 at all draws of N(0, {scale:g}^2 I); give another scale.")
    while b < 1:
        ratio = at_target - at_start
        step = _step(ratio, 1 - b)
        b = min(1.0, b + step)
        weight = (step * ratio).softmax(0)
        # systematic resampling: one uniform number for all
        places = (torch.arange(n) + torch.rand(1, generator=generator)) / n
        rows = torch.searchsorted(weight.cumsum(0), places).clamp_max(n - 1)
        z, at_start, at_target = z[rows], at_start[rows], at_target[rows]
        factor = torch.linalg.cholesky(z.T.cov().view(dim, dim) + 1e-8 * torch.eye(dim))
        reach = 2.4 / dim**0.5
        for _ in range(MOVES):
            proposed = z + reach * normal() @ factor.T
            new_start, new_target = start(proposed), target(proposed)
            gain = (1 - b) * (new_start - at_start) + b * (new_target - at_target)
            taken = torch.rand(n, generator=generator).log() < gain
            z = torch.where(taken[:, None], proposed, z)
            at_start = torch.where(taken, new_start, at_start)
            at_target = torch.where(taken, new_target, at_target)
            reach *= 1.5 if taken.float().mean() > 0.234 else 1 / 1.5  # toward the best rate of random walks
    return z


def _step(ratio: Tensor, most: float) -> float:
    """The largest step of the annealing, at most `most`, that leaves half of the particles effective."""

    def effective(step: float) -> float:
        weight = (step * ratio).softmax(0)
        return 1 / (len(weight) * weight.square().sum().item())

    outside = torch.isneginf(ratio)
    enough = 0.5 * (1 - outside.float().mean().item())  # those outside the support are lost at any step
    if effective(most) >= enough:
        return most
    low, high = 0.0, most
    for _ in range(40):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if effective(middle) >= enough else (low, middle)
    return max(low, 1e-6)
