"""A mixture of Gaussians."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Generator, Tensor, nn

from latentfit.errors import InputError
from latentfit.flows.mixing import lower_index, unpack_lower
from latentfit.model.contracts import Prior, Shape, as_shape
from latentfit.model.rows import CodeRows, FitOptions
from latentfit.priors.components import component_log_prob, first_means, have_parted
from latentfit.priors.em import MixtureFit, fit_mixture
from latentfit.priors.gaussians import log_mixture
from latentfit.training.rng import standard_normal

#: components before a fit has chosen their number
START_COMPONENTS = 10
#: rows of a component at least, for a start in joint training
FEWEST_ROWS_EACH = 5


class MixturePrior(Prior):
    r"""p(z) = sum_k w_k N(z; m_k, C_k), with C_k^{-1} = W_k^T W_k.

    It starts next to N(0, I): equal weights, unit covariances, means 0.1 from the origin; the diagonal of W_k is
    held below 1 / `min_std`. From there a gradient does not find the clusters, so in joint training
    `latentfit.fit` starts it again, by EM at the codes that a fifth of the run has made, and at half of it where that
    is better, and trains on; in a loop of your own call `fit` at such a point. `fit` runs EM on fresh draws of
    q(z given x), with held-out rows choosing the iterate and, for "auto", the number of components. A context is not
    used.

    Args:
        latent_dim: D, or a shape (flattened).
        n_components: K, or "auto": `fit` then tries 1, 3, 10, 30 and 100, as far as the rows allow; 10 until it
            has.
        covariance: "full" or "diagonal".

    Source: Dempster, Laird & Rubin (1977); Cappe & Moulines (2009), online EM, arXiv:0712.4273.

    Example:
        >>> prior = MixturePrior(2, n_components=3)
        >>> prior.log_prob(torch.zeros(4, 5, 2)).shape
        torch.Size([4, 5])
    """

    below: Tensor
    min_std: Tensor

    def __init__(
        self,
        latent_dim: Shape,
        n_components: int | Literal["auto"] = START_COMPONENTS,
        covariance: Literal["full", "diagonal"] = "full",
    ) -> None:
        super().__init__(latent_dim)
        if n_components != "auto" and n_components < 1:
            raise InputError(f"n_components must be at least 1 or 'auto', got {n_components}.")
        self.covariance = covariance
        self.automatic = n_components == "auto"
        self.register_buffer("below", lower_index(self.event_shape.numel()), persistent=False)
        self.register_buffer("min_std", torch.tensor(1e-3))
        self._allocate(START_COMPONENTS if n_components == "auto" else n_components)

    def _allocate(self, n_components: int) -> None:
        """Parameters of K components, next to N(0, I)."""
        dim, like = self.event_shape.numel(), self.min_std
        self.n_components = n_components
        self.logits = nn.Parameter(torch.zeros(n_components).to(like))
        self.mean = nn.Parameter(first_means(n_components, dim).to(like))
        self.log_diagonal = nn.Parameter(torch.zeros(n_components, dim).to(like))
        if self.covariance == "full":
            self.lower = nn.Parameter(torch.zeros(n_components, dim * (dim - 1) // 2).to(like))

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        return log_mixture(z.flatten(-len(self.event_shape)), self.logits.log_softmax(0), self.mean, self._factor())

    @torch.no_grad()
    def component_means(self) -> Tensor:
        """m_k: (K, *event_shape)."""
        return self.mean.unflatten(-1, self.event_shape)

    @torch.no_grad()
    def responsibilities(self, z: Tensor) -> Tensor:
        """p(component given z): (..., *event_shape) -> (..., K)."""
        flat = z.flatten(-len(self.event_shape))
        joint = self.component_log_prob(flat.reshape(-1, flat.shape[-1]))
        return joint.softmax(-1).view(*flat.shape[:-1], -1)

    def component_log_prob(self, rows: Tensor) -> Tensor:
        """log w_k + log N(z; m_k, C_k): rows (R, D) -> (R, K)."""
        return self.logits.log_softmax(0) + component_log_prob(rows, self.mean, self._factor())

    @torch.no_grad()
    def sample(self, n: Shape, context: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        shape = as_shape(n)
        total = shape.numel()
        noise = standard_normal((total, self.mean.shape[1]), self.mean, generator)
        weights = self.logits.softmax(0)
        if generator is not None:
            weights = weights.to(generator.device)
        which = torch.multinomial(weights, max(total, 1), replacement=True, generator=generator)[:total]
        which = which.to(self.mean.device)
        factor = self._factor()
        if self.covariance == "diagonal":
            return (self.mean[which] + noise / factor[which]).view(*shape, *self.event_shape)
        z = torch.empty_like(noise)
        for k in range(self.n_components):  # a solve per component: gathering factors would be (n, D, D)
            rows = (which == k).nonzero().squeeze(-1)
            if len(rows):
                offset = torch.linalg.solve_triangular(factor[k], noise[rows].T, upper=False).T
                z[rows] = self.mean[k] + offset
        return z.view(*shape, *self.event_shape)

    @torch.no_grad()
    def fit_rows(self, rows: CodeRows, options: FitOptions) -> None:
        """EM on fresh draws in each of at most `max_steps` iterations (60 by default).

        One row in ten is held out: the iterate is the best on these, and with `n_components="auto"` the
        number the smallest within one standard error of the best after a fifth of the iterations, which every
        number gets. It is the configuration from then on. Determined by `random_state`.
        """
        n_components: int | Literal["auto"] = "auto" if self.automatic else self.n_components
        found = self._found(rows, n_components, options)
        if len(found.log_weight) != self.n_components:
            self._allocate(len(found.log_weight))
        if self.automatic:
            arguments = {**getattr(self, "_arguments", {}), "n_components": self.n_components}
            object.__setattr__(self, "_arguments", arguments)
        self._take(found)

    @property
    def awaits_codes(self) -> bool:
        """Whether it is as constructed, with components that have yet to part."""
        return not have_parted(self.mean)

    @torch.no_grad()
    def start_rows(self, rows: CodeRows, options: FitOptions) -> None:
        """EM as in `fit`, with the number of components that there is; nothing where the rows are too few for it."""
        if self.n_components * FEWEST_ROWS_EACH <= len(rows):
            self._take(self._found(rows, self.n_components, options))

    def _found(self, rows: CodeRows, n_components: int | Literal["auto"], options: FitOptions) -> MixtureFit:
        return fit_mixture(
            rows.to("cpu", rows.mean.dtype),  # so that a GPU's rows give the same mixture
            n_components,
            self.covariance,
            max_iterations=60 if options.max_steps is None else options.max_steps,
            random_state=options.random_state,
            progress=options.progress,
        )

    def _take(self, found: MixtureFit) -> None:
        """The parameters of a fit with as many components."""
        diagonal = found.factor if self.covariance == "diagonal" else found.factor.diagonal(dim1=-2, dim2=-1)
        # a latent on a small scale (a weak KL) must not be stopped by the floor meant for joint training
        self.min_std.fill_(min(1e-3, 0.1 / diagonal.max().item()))
        self.logits.copy_(found.log_weight)
        self.mean.copy_(found.mean)
        self.log_diagonal.copy_(diagonal.log())
        if self.covariance == "full":
            self.lower.copy_(found.factor.flatten(1)[:, lower_index(self.mean.shape[1])])

    def _factor(self) -> Tensor:
        """W_k (K, D, D), or its diagonal (K, D)."""
        diagonal = torch.minimum(self.log_diagonal, -self.min_std.log()).exp()
        return diagonal if self.covariance == "diagonal" else unpack_lower(diagonal, self.lower, self.below)
