"""The VampPrior: a mixture of the encoder's own posteriors at learned pseudo-inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Generator, Tensor, nn

from latentfit.data.batch import Batch
from latentfit.errors import CapabilityError, InputError
from latentfit.model.contracts import Prior, Shape, as_shape
from latentfit.model.rows import CodeRows, FitOptions
from latentfit.posteriors.gaussian import DiagonalGaussian
from latentfit.priors.components import component_log_prob
from latentfit.priors.following import ENCODED, gaussian, resize
from latentfit.priors.gaussians import draws, log_mixture
from latentfit.training.modes import in_eval

if TYPE_CHECKING:
    from latentfit.model.vae import VAEModule


class VampPrior(Prior):
    r"""p(z) = sum_k w_k q(z given u_k), with u_k learned.

    `bind(model, data)`, which `latentfit.fit` calls, starts the u_k at K rows of the data, in the units that the
    encoder reads, and keeps each within its column's range. Until `freeze` the components follow the encoder: one
    pass of K rows per density, gradient to the u_k and to the encoder. `freeze` (called at the end of
    `latentfit.fit`) keeps their means and scales, and p(z) is from then on that mixture, with the model or without
    it, before and after saving. In a conditional model each u_k keeps the context of the row that it started from.
    A context given to `log_prob` is not used.

    Privacy: u_k start as training rows and may still look like them; they are saved with the prior.

    Args:
        latent_dim: D, or a shape.
        n_components: K, at most; fewer where there are fewer rows.
        weights: "equal", or "learned".

    Raises:
        CapabilityError: bound to a posterior that is no Gaussian, or fitted post hoc.

    Source: Tomczak & Welling (2018), VAE with a VampPrior, arXiv:1705.07120.

    Example:
        >>> import latentfit as lf
        >>> vae = lf.VAEModule(nn.Linear(4, 4), nn.Linear(2, 4), VampPrior(2, n_components=5), likelihood="normal")
        >>> vae.prior.bind(vae, Batch(torch.randn(20, 4)))
        >>> vae.prior.log_prob(torch.zeros(3, 2)).shape
        torch.Size([3])
    """

    of_rows = True
    pseudo_inputs: nn.Parameter | None
    contexts: Tensor | None
    low: Tensor | None
    high: Tensor | None
    component_mean: Tensor | None
    component_factor: Tensor | None

    def __init__(
        self, latent_dim: Shape, n_components: int = 500, weights: Literal["equal", "learned"] = "equal"
    ) -> None:
        super().__init__(latent_dim)
        if n_components < 1:
            raise InputError(f"n_components must be at least 1, got {n_components}.")
        self.n_components, self.weights = n_components, weights
        self.register_parameter("pseudo_inputs", None)
        self.register_parameter("logits", None)
        for name in ("contexts", "low", "high", "component_mean", "component_factor"):
            self.register_buffer(name, None)
        #: the model while it is followed; in a tuple, so that its weights are not this prior's too
        self._followed: tuple[VAEModule] | None = None

    def bind(self, model: nn.Module | None = None, data: Batch | None = None) -> None:
        """Follow a model's encoder, from pseudo-inputs at rows of the data or, bound before, at those it has.

        Raises:
            CapabilityError: a posterior that is no Gaussian.
        """
        if model is None:
            return
        self._followed = (model,)  # type: ignore[assignment]  # anything with encoder_inputs and encode_inputs
        if self.pseudo_inputs is None:
            if data is None:
                raise InputError("vamp: pseudo-inputs start at rows of the data; bind(model, data) needs both.")
            self._start(data)
        with torch.no_grad(), in_eval(model):
            self._encoded(slice(0, 2))

    @torch.no_grad()
    def _start(self, data: Batch) -> None:
        """K rows as the encoder reads them, and the range of every column."""
        (model,) = self._followed  # type: ignore[misc]
        n = min(self.n_components, len(data))
        rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:n]
        picked = data[rows.to(data.x.device)].to(model.device)
        self.n_components = n
        self.pseudo_inputs = nn.Parameter(model.encoder_inputs(picked).clone())
        self.contexts = picked.context if model.conditional else None
        low, high = [], []
        for start in range(0, len(data), ENCODED):
            inputs = model.encoder_inputs(data[slice(start, start + ENCODED)].to(model.device))
            low.append(inputs.amin(0))
            high.append(inputs.amax(0))
        self.low, self.high = torch.stack(low).amin(0), torch.stack(high).amax(0)
        if self.weights == "learned":
            self.logits = nn.Parameter(self.pseudo_inputs.new_zeros(n))

    @torch.no_grad()
    def freeze(self) -> None:
        """Keep the components' means and scales, in eval mode, and follow the encoder no more."""
        if self._followed is not None:
            self._keep()
            self._followed = None

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        mean, factor = self.gaussians()
        return log_mixture(z.flatten(-len(self.event_shape)), self._log_weight(mean), mean, factor)

    @torch.no_grad()
    def sample(self, n: Shape, context: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        shape = as_shape(n)
        mean, factor = self.gaussians()
        return draws(self._log_weight(mean), mean, factor, shape.numel(), generator).view(*shape, *self.event_shape)

    @torch.no_grad()
    def component_means(self) -> Tensor:
        """Where the encoder puts the pseudo-inputs: (K, *event_shape)."""
        return self.gaussians()[0].unflatten(-1, self.event_shape)

    @torch.no_grad()
    def responsibilities(self, z: Tensor) -> Tensor:
        """p(pseudo-input given z): (..., *event_shape) -> (..., K)."""
        (mean, factor), flat = self.gaussians(), z.flatten(-len(self.event_shape))
        joint = self._log_weight(mean) + component_log_prob(flat.reshape(-1, flat.shape[-1]), mean, factor)
        return joint.softmax(-1).view(*flat.shape[:-1], -1)

    def gaussians(self) -> tuple[Tensor, Tensor]:
        """Means (K, D) and W_k with C_k^{-1} = W_k^T W_k, (K, D, D) or its diagonal (K, D)."""
        if self._followed is not None:
            return self._encoded(slice(None))
        if self.component_mean is None or self.component_factor is None:
            raise InputError(
                "vamp is made of an encoder: put it in a VAEModule and train that with latentfit.fit, or call "
                "prior.bind(model, data) before a loop of your own."
            )
        return self.component_mean, self.component_factor

    def fit_rows(self, rows: CodeRows, options: FitOptions) -> None:
        """Refused: there is no encoder in codes.

        Raises:
            CapabilityError: always.
        """
        raise CapabilityError(
            "vamp is a mixture of the encoder's posteriors at learned inputs, so it is trained with the VAE and "
            "cannot be fitted to codes alone. Fitted to codes: mixture, dp_mixture, exemplar."
        )

    def _encoded(self, which: slice) -> tuple[Tensor, Tensor]:
        """The components of some pseudo-inputs, by the encoder as it is now."""
        if self._followed is None or self.pseudo_inputs is None or self.low is None or self.high is None:
            raise InputError("vamp: not bound to a model.")
        (model,) = self._followed
        inputs = _Kept.apply(self.pseudo_inputs[which], self.low, self.high)
        inputs = inputs.to(next(model.encoder.parameters(), inputs).dtype)
        context = None if self.contexts is None else self.contexts[which]
        q = gaussian(model.encode_inputs(inputs, Batch(inputs, context)), "vamp")
        factor = (-q.log_std).exp().flatten(1) if isinstance(q, DiagonalGaussian) else _inverse(q.scale_tril)
        return q.mean.flatten(1).to(self.pseudo_inputs), factor.to(self.pseudo_inputs)

    def _log_weight(self, mean: Tensor) -> Tensor:
        logits = mean.new_zeros(len(mean)) if self.logits is None else self.logits
        return logits.log_softmax(0)

    @torch.no_grad()
    def _keep(self) -> None:
        if self._followed is None:
            return
        with in_eval(self._followed[0]):
            self.component_mean, self.component_factor = self._encoded(slice(None))

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self._keep()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        resize(self, state_dict, prefix)
        self._followed = None
        super()._load_from_state_dict(state_dict, prefix, *rest)


class _Kept(torch.autograd.Function):
    """Values clamped to [low, high]; a gradient step that would lead further out is none, one back in passes."""

    generate_vmap_rule = True  # several seeds may be trained as one model

    @staticmethod
    def forward(values: Tensor, low: Tensor, high: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(values, low), high)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        values, low, high = ctx.saved_tensors
        (gradient,) = gradients
        outward = ((values <= low) & (gradient > 0)) | ((values >= high) & (gradient < 0))
        return gradient.masked_fill(outward, 0.0), None, None


def _inverse(scale_tril: Tensor) -> Tensor:
    identity = torch.eye(scale_tril.shape[-1], dtype=scale_tril.dtype, device=scale_tril.device)
    return torch.linalg.solve_triangular(scale_tril, identity.expand_as(scale_tril), upper=False)
