"""Distributions of other libraries as priors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from latentfit.errors import CapabilityError, InputError
from latentfit.flows.whitening import Whitening
from latentfit.model.contracts import Prior, Shape, as_shape
from latentfit.model.rows import CodeRows, FitOptions
from latentfit.priors.fitting import fit_by_gradient
from latentfit.priors.foreign import generator_as_global
from latentfit.priors.moments import exact_moments


class ExternalPrior(Prior):
    r"""A user's distribution as a prior, after a whitening that is the identity until `fit` sets it.

    Made by `as_prior`. Its parameters are learned jointly, or by `fit`; it is saved as `{"external": NAME}`
    and handed to `load` again by its owner.

    Args:
        distribution: has log_prob and sample or rsample, or is called (with a context) to return such an
            object.
        latent_dim: D, or a shape.
        context_features: width of the context the distribution is called with; with 0 a context is not used.
        external_name: the name under which it is handed to `load`.
    """

    def __init__(
        self,
        distribution: Any,
        latent_dim: Shape,
        context_features: int = 0,
        external_name: str = "prior",
    ) -> None:
        super().__init__(latent_dim)
        self.distribution = distribution  # a module is registered by this, so its parameters are found
        self.context_features = context_features
        self.external_name = external_name
        dim = self.event_shape.numel()
        self.whitening = Whitening(dim, full=dim <= 512)

    def config(self) -> dict[str, Any]:
        return {"external": self.external_name}

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        k = len(self.event_shape)
        u, log_det = self.whitening(z.flatten(-k))
        log_prob = self._given(context, u.shape[:-1]).log_prob(u.unflatten(-1, self.event_shape))
        if log_prob.shape != u.shape[:-1]:
            raise InputError(
                f"Your prior's log_prob gave {tuple(log_prob.shape)} for z {tuple(z.shape)}; expected "
                f"{tuple(u.shape[:-1])}, one number per latent. Try torch.distributions.Independent(d, {k})."
            )
        return log_prob + log_det

    @property
    def invertible(self) -> bool:
        """Whether the distribution has a `transform` with an inverse, as zuko's flows have."""
        context = torch.zeros(self.context_features).to(self.whitening.weight) if self.context_features else None
        return hasattr(getattr(self._given(context, torch.Size()), "transform", None), "inv")

    @torch.no_grad()
    def round_trip(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """f^{-1}(f(z)): z (..., *event_shape) -> the same shape, equal to z but for rounding.

        Raises:
            CapabilityError: a distribution that is not `invertible`.
        """
        if not self.invertible:
            raise CapabilityError(f"{type(self.distribution).__name__} has no transform with an inverse.")
        u = self.whitening(z.flatten(-len(self.event_shape)))[0]
        transform = self._given(context, u.shape[:-1]).transform
        back = transform.inv(transform(u.unflatten(-1, self.event_shape)))
        return self.whitening.inverse(back.reshape(u.shape))[0].unflatten(-1, self.event_shape)

    @torch.no_grad()
    def sample(self, n: Shape, context: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        shape = as_shape(n)
        given = self._given(context, shape)
        draw = given.sample if hasattr(given, "sample") else given.rsample
        with generator_as_global(generator):
            # a distribution that was given the context of every draw has them as its batch
            u = draw(torch.Size() if self.context_features else shape)
        z, _ = self.whitening.inverse(u.reshape(-1, self.event_shape.numel()).to(self.whitening.weight))
        return z.reshape(*shape, *self.event_shape)

    def fit_rows(self, rows: CodeRows, options: FitOptions) -> None:
        """Whiten by the exact moments of q(z) and maximise log p on fresh draws, from the parameters it has.

        Raises:
            CapabilityError: a distribution without parameters.
        """
        if self.n_parameters == 0:
            raise CapabilityError("Your distribution has no learnable parameters, so there is nothing to fit.")
        self.whitening.set_moments(*exact_moments(rows))
        fit_by_gradient(self, rows, options)

    def _given(self, context: Tensor | None, shape: torch.Size) -> Any:
        """The object with log_prob and sample, for this context."""
        if not self.context_features:
            return self.distribution if hasattr(self.distribution, "log_prob") else self.distribution()
        if context is None:
            raise InputError(f"This prior needs a context (..., {self.context_features}), got none.")
        return self.distribution(context.expand(*shape, self.context_features))


def as_prior(
    distribution: Any,
    latent_dim: Shape | None = None,
    *,
    context_features: int = 0,
    external_name: str = "prior",
) -> Prior:
    """Anything with log_prob and sample or rsample as a prior; a zuko flow and other lazy distributions too.

    Args:
        distribution: a prior (returned as it is), a `torch.distributions.Distribution`, a module with those
            methods, or something that is called to give such an object.
        latent_dim: D, or a shape; found from `event_shape` where there is one.
        context_features: width of the context that a lazy distribution is called with.
        external_name: the name under which the saved model will ask for it.

    Raises:
        InputError: no log_prob or no sampling, or a shape that cannot be found.

    Example:
        >>> prior = as_prior(torch.distributions.Laplace(torch.zeros(3), torch.ones(3)))
        >>> prior.log_prob(prior.sample(5)).shape
        torch.Size([5])
    """
    if isinstance(distribution, Prior):
        return distribution
    seen = distribution
    if not hasattr(distribution, "log_prob") and callable(distribution):
        context = (torch.zeros(context_features),) if context_features else ()
        seen = distribution(*context)
    if not hasattr(seen, "log_prob") or not (hasattr(seen, "sample") or hasattr(seen, "rsample")):
        raise InputError(
            f"as_prior needs something with log_prob and sample (or rsample), or a call that returns it; got "
            f"{type(distribution).__name__}."
        )
    event = getattr(seen, "event_shape", None)
    if seen is distribution and isinstance(seen, torch.distributions.Distribution) and not event:
        distribution = seen = torch.distributions.Independent(seen, len(seen.batch_shape))
        event = seen.event_shape
    shape = latent_dim if latent_dim is not None else event
    if not shape:
        raise InputError("as_prior cannot tell the latent's shape: give latent_dim=.")
    if event and tuple(event) != tuple(as_shape(shape)):
        raise InputError(f"as_prior: latent_dim is {shape}, but the distribution is over {tuple(event)}.")
    return ExternalPrior(distribution, tuple(as_shape(shape)), context_features, external_name)
