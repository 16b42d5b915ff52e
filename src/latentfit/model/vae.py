"""The VAE that composes an encoder, a posterior, a prior, a decoder and a likelihood."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Generator, Tensor, nn

from latentfit.data.batch import Batch
from latentfit.data.transforms import Transform
from latentfit.errors import InputError
from latentfit.model.contracts import LatentDistribution, Likelihood, Posterior, Prior, Shape
from latentfit.model.uncertain import UncertainNetwork
from latentfit.registry import Component, registry
from latentfit.training.precision import run_network


class VAEModule(Component, nn.Module):
    r"""A latent-variable model p(x, z) = p(z) p(x given z) with an approximate posterior q(z given x).

    Everything it scores is in nats per row and in the units of the x it was given: where `preprocess` standardises x,
    its log-determinant is part of log p(x given z).

    Args:
        encoder: module, x (N, *data_shape) -> (N, posterior.n_parameters), or a tuple that concatenates to it, such as
            the (mean, log-variance) of most tutorials.
        decoder: module, z (B, *event_shape) -> the likelihood's parameters, (B, *data_shape) where it has one per
            entry and (B, *data_shape, P) where it has P.
        prior: a `Prior`, or a name with `latent_dim`.
        posterior: a `Posterior` or a name.
        likelihood: a `Likelihood` or a name.
        latent_dim: needed only where `prior` is a name.
        preprocess: an invertible transform of x whose log-determinant is part of the density.
        encoder_input: a transform of what the encoder reads; no part of the density.
        conditional: whether encoder and decoder are called as f(input, context).

    Raises:
        InputError: shapes that do not meet, with both.
    """

    #: what `fit` writes down of its last run, JSON; None: trained by other means, or not at all
    trained: dict[str, Any] | None = None

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        prior: Prior | str = "standard",
        posterior: Posterior | str = "diagonal",
        likelihood: Likelihood | str = "bernoulli",
        latent_dim: Shape | None = None,
        preprocess: Transform | None = None,
        encoder_input: Transform | None = None,
        conditional: bool = False,
    ) -> None:
        super().__init__()
        p_z, q_z, p_x = prior, posterior, likelihood
        if isinstance(p_z, str):
            if latent_dim is None:
                raise InputError(f"VAEModule: a prior given by name ({p_z!r}) needs latent_dim.")
            p_z = _create_prior(p_z, latent_dim)
        if isinstance(q_z, str):
            q_z = _create_posterior(q_z, _json_shape(p_z.event_shape))
        if isinstance(p_x, str):
            p_x = _create_likelihood(p_x)
        if q_z.event_shape != p_z.event_shape:
            raise InputError(
                f"VAEModule: the posterior is over {tuple(q_z.event_shape)}, the prior over "
                f"{tuple(p_z.event_shape)}; give both the same latent_dim."
            )
        self.encoder, self.decoder = encoder, decoder
        self.prior: Prior = p_z
        self.posterior: Posterior = q_z
        self.likelihood: Likelihood = p_x
        self.preprocess, self.encoder_input, self.conditional = preprocess, encoder_input, conditional

    @property
    def event_shape(self) -> torch.Size:
        """The shape of z."""
        return self.prior.event_shape

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    def encode(self, batch: Batch | Tensor) -> LatentDistribution:
        """q(z given x) of the rows: x (N, *data_shape)."""
        batch = Batch.of(batch)
        return self.encode_inputs(self.encoder_inputs(batch), batch)

    def encoder_inputs(self, batch: Batch) -> Tensor:
        """What the encoder reads of the rows, transformed and unobserved entries set to 0: (N, *data_shape)."""
        x = self.model_units(batch.x)
        if self.encoder_input is not None:
            x = self.encoder_input(x)
        return x if batch.mask is None else torch.where(batch.mask, x, 0.0)

    def encode_inputs(self, inputs: Tensor, batch: Batch) -> LatentDistribution:
        """q(z given x) from what the encoder reads (N, *data_shape) and the batch's context."""
        context = (batch.context,) if self.conditional else ()
        features = run_network(self.encoder, inputs, *context)
        if isinstance(features, tuple | list):
            features = torch.cat([part.flatten(1) for part in features], dim=-1)
        if features.shape != (len(batch), self.posterior.n_parameters):
            raise InputError(
                f"The encoder returned {tuple(features.shape)}; the {self.posterior.name or 'given'} posterior over "
                f"{tuple(self.event_shape)} needs ({len(batch)}, {self.posterior.n_parameters}): change its last layer."
            )
        return self.posterior(features, batch)

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """The likelihood's parameters: z (..., *event_shape) -> (..., *data_shape[, P])."""
        lead = z.shape[: z.dim() - len(self.event_shape)]
        flat = z.reshape(-1, *self.event_shape)  # (S N, *event_shape): convolutions take one batch dimension
        if self.conditional:
            if context is None:
                raise InputError("This VAE is conditional: give Batch.context (N, C).")
            repeats = flat.shape[0] // context.shape[0]
            params = run_network(self.decoder, flat, context.repeat(repeats, 1))
        else:
            params = run_network(self.decoder, flat)
        return params.reshape(*lead, *params.shape[1:])

    def log_likelihood(self, batch: Batch | Tensor, z: Tensor) -> Tensor:
        """log p(x given z) in the units of x: z (S, N, *event_shape) -> (S, N)."""
        batch = Batch.of(batch)
        params = self.decode(z, batch.context)
        x = self.model_units(batch.x)
        self.check_parameters(x, params)
        log_p = self.likelihood.log_prob(x, params, context=batch.context, mask=batch.mask)  # (S, N)
        return log_p if self.preprocess is None else log_p + self.preprocess.log_det(batch.x, batch.mask)

    def model_units(self, x: Tensor) -> Tensor:
        """Rows (N, *data_shape) in the units that the likelihood scores."""
        return x if self.preprocess is None else self.preprocess(x)

    def check_rows(self, x: Tensor) -> None:
        """Refuse rows (N, *data_shape) that the likelihood cannot score.

        Raises:
            InputError: with the offending column, value and share.
        """
        # all rows there are: only a transform, whose tensors lie on the model's device, needs them there
        self.likelihood.check(x if self.preprocess is None else self.model_units(x.to(self.device)))

    def check_parameters(self, x: Tensor, params: Tensor) -> None:
        """Refuse decoded parameters (..., N, *data_shape[, P]) that are not those of rows x (N, *data_shape).

        Raises:
            InputError: with both shapes; broadcasting would score a decoder of width 1 against every column.
        """
        p = self.likelihood.n_parameters
        needed = (*x.shape, p) if p > 1 else tuple(x.shape)
        got = tuple(params.shape[max(0, params.dim() - len(needed)) :])
        if got != needed:
            name = self.likelihood.name or type(self.likelihood).__name__
            raise InputError(
                f"The decoder returned {got} for rows of {tuple(x.shape)}; likelihood {name!r} needs {needed}: change "
                "the decoder's last layer, or reshape its output."
            )

    def reconstruct(self, batch: Batch | Tensor) -> Tensor:
        """E[x given z] at the posterior's mean: (N, *data_shape), in the units of x."""
        batch = Batch.of(batch)
        mean, _ = self.encode(batch).moments()
        return self.decode_mean(mean, batch.context)

    def decode_mean(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """E[x given z] in the units of x: z (..., *event_shape) -> (..., *data_shape)."""
        return self._data_units(self.likelihood.mean(self.decode(z, context), context))

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        context: Tensor | None = None,
        observation_noise: bool = True,
        generator: Generator | None = None,
    ) -> Tensor:
        """Draws of x: z ~ p(z), then p(x given z), or its mean where `observation_noise` is False: (n, *data_shape).

        Where the decoder's weights have a distribution, they are drawn too, at most `n_draws` times.
        """
        if isinstance(self.decoder, UncertainNetwork):
            models = list(self.draws(min(n, self.n_draws), generator))
            sizes = [len(part) for part in torch.arange(n).tensor_split(len(models))] if models else []
            contexts = [None] * len(models) if context is None else context.split(sizes)
            parts = [
                model.sample(size, context=c, observation_noise=observation_noise, generator=generator)
                for model, size, c in zip(models, sizes, contexts, strict=True)
            ]
            return torch.cat(parts)
        z = self.prior.sample(n, context, generator)
        if not observation_noise:
            return self.decode_mean(z, context)
        return self._data_units(self.likelihood.sample(self.decode(z, context), context, generator))

    def draws(self, n: int = 1, generator: Generator | None = None) -> Iterator[VAEModule]:
        """Ordinary VAEs drawn from the distribution over the weights; itself, n times, where there is none.

        They share every part that has no such distribution.
        """
        drawn = {name: network.draws(n, generator) for name, network in self._uncertain().items()}
        for _ in range(n):
            yield self.with_parts(**{name: next(networks) for name, networks in drawn.items()}) if drawn else self

    @property
    def n_draws(self) -> int:
        """How many draws stand for the distribution over the weights; 1 where there is none."""
        return max((network.n_draws for network in self.uncertain), default=1)

    def centre(self) -> VAEModule:
        """The ordinary VAE at the centre of the distribution over the weights, itself where there is none."""
        parts = {name: network.network for name, network in self._uncertain().items()}
        return self.with_parts(**parts) if parts else self

    def with_parts(self, **parts: nn.Module) -> VAEModule:
        """The same VAE with other parts by name, sharing the rest; the original is not touched."""
        changed = copy.copy(self)
        changed._modules = dict(self._modules)
        for name, part in parts.items():
            setattr(changed, name, part)
        return changed

    @property
    def uncertain(self) -> list[UncertainNetwork]:
        """The networks with a distribution over their weights."""
        return list(self._uncertain().values())

    def _uncertain(self) -> dict[str, UncertainNetwork]:
        parts = {"encoder": self.encoder, "decoder": self.decoder}
        return {name: part for name, part in parts.items() if isinstance(part, UncertainNetwork)}

    def _data_units(self, x: Tensor) -> Tensor:
        return x if self.preprocess is None else self.preprocess.inverse(x)


def _create_prior(name: str, latent_dim: Shape) -> Prior:
    return registry.create("prior", name, latent_dim=latent_dim)


def _create_posterior(name: str, latent_dim: Shape) -> Posterior:
    return registry.create("posterior", name, latent_dim=latent_dim)


def _create_likelihood(name: str) -> Likelihood:
    return registry.create("likelihood", name)


def _json_shape(shape: torch.Size) -> Any:
    return shape[0] if len(shape) == 1 else list(shape)


registry.register("model", "vae", VAEModule)
