"""Full Bayes over a mixture: as many components as the rows call for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn

from latentfit.data.batch import Batch
from latentfit.errors import InputError
from latentfit.flows.mixing import lower_index, unpack_lower
from latentfit.model.contracts import LOG_2PI, Prior, Shape, as_shape
from latentfit.model.rows import CodeRows, FitOptions
from latentfit.priors import sticks
from latentfit.priors.components import component_log_prob, first_means, have_parted
from latentfit.priors.following import resize
from latentfit.priors.gaussians import around, pick, stretches
from latentfit.priors.hierarchical import START_ROWS
from latentfit.priors.normal_wishart import (
    Hyper,
    divergence,
    expected_log_prob,
    inverse_factor,
    predictive,
    predictive_log_prob,
)
from latentfit.priors.variational import Posterior, fit_mixture
from latentfit.training.rng import standard_normal

#: a component of less weight is not counted as a cluster
LEAST_WEIGHT = 0.01
#: rows of a component that has none, so that its logarithm is finite
NO_ROWS = 1e-6


class DirichletProcessPrior(Prior):
    r"""p(z) = sum_k E[pi_k] t_k(z): a mixture whose weights, means and covariances have posteriors.

        pi by stick-breaking, v_k ~ Beta(1, alpha), k = 1..K;   (mu_k, C_k) ~ Normal-inverse-Wishart

    with one hyper-prior for all components, learned too; t_k is the Student-t of `hierarchical`. A component without
    rows falls back to the hyper-prior and its weight to nearly 0, so K only bounds how many are found. `log_prob` is
    the predictive given that posterior. In training the ELBO takes the bound

        log sum_k exp(E log pi_k + E log N(z; mu_k, C_k)) <= E log p(z)

    (`training_log_prob`) and the posterior's KL from the hyper-prior once for all n rows (`parameter_kl` / n): the
    variational Bayes of Blei & Jordan, its n_k, m_k and W_k learned by gradient. `fit` finds them by coordinate
    ascent with merges and keeps only the components with rows, and one for all the rest. A context is not used.

    Warning: the number found is the number of Gaussians that describe the codes. A bent cluster takes several, and
    more rows find more of them: a Dirichlet process does not estimate a number of clusters consistently (Miller &
    Harrison 2013, arXiv:1301.2708).

    Args:
        latent_dim: D, or a shape (flattened).
        truncation: K.
        concentration: alpha; larger expects more clusters.

    Source: Blei & Jordan (2006), Bayesian Analysis 1; merges as in Hughes & Sudderth (2013), NeurIPS 26.

    Example:
        >>> mean = torch.tensor([[-3.0], [3.0]]).repeat(50, 1)
        >>> prior = DirichletProcessPrior(1).fit(mean, std=0.3 * torch.ones(100, 1))
        >>> prior.n_clusters, prior.responsibilities(torch.tensor([[3.0]])).shape
        (2, torch.Size([1, 3]))
    """

    below: Tensor
    n_rows: Tensor

    def __init__(self, latent_dim: Shape, truncation: int = 30, concentration: float = 1.0) -> None:
        super().__init__(latent_dim)
        if truncation < 1 or concentration <= 0:
            raise InputError(
                f"dp_mixture: truncation must be at least 1 and concentration positive, got {truncation} and "
                f"{concentration}."
            )
        self.truncation, self.concentration = truncation, concentration
        dim = self.event_shape.numel()
        self.register_buffer("below", lower_index(dim), persistent=False)
        self.logits = nn.Parameter(torch.zeros(truncation))  # of n_k / n
        self.mean = nn.Parameter(first_means(truncation, dim))
        self.log_diagonal = nn.Parameter(torch.zeros(truncation, dim))  # of W_k
        self.lower = nn.Parameter(torch.zeros(truncation, dim * (dim - 1) // 2))
        self.log_rows = nn.Parameter(torch.tensor(START_ROWS).log())
        self.log_mean_rows = nn.Parameter(torch.tensor(START_ROWS).log())
        self.log_variance = nn.Parameter(torch.tensor(0.0))
        # an integer, so that no change of dtype rounds it
        self.register_buffer("n_rows", torch.tensor(0))

    @property
    def hyper(self) -> Hyper:
        """s, kappa0 and tau^2 of every component, as logarithms."""
        return Hyper(self.log_rows, self.log_mean_rows, self.log_variance)

    @property
    def weights(self) -> Tensor:
        """E pi_k: (K,)."""
        return sticks.log_mean_weights(self._counts(), self.concentration).exp().to(self.mean).detach()

    @property
    def n_clusters(self) -> int:
        """Components of at least 1 % weight."""
        return int((self.weights >= LEAST_WEIGHT).sum())

    def bind(self, model: nn.Module | None = None, data: Batch | None = None) -> None:
        """Learn the number of rows that the posterior rests on."""
        if data is not None:
            self.n_rows.fill_(len(data))

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        return self._joint(z).logsumexp(-1)

    @torch.no_grad()
    def component_means(self) -> Tensor:
        """m_k: (K, *event_shape)."""
        return self.mean.unflatten(-1, self.event_shape)

    @torch.no_grad()
    def responsibilities(self, z: Tensor) -> Tensor:
        """p(component given z): (..., *event_shape) -> (..., K)."""
        return self._joint(z).softmax(-1)

    def training_log_prob(self, z: Tensor, batch: Batch | None = None) -> Tensor:
        energy, log_det = self._measured(z)
        n = self._counts()
        weights = sticks.mean_log_weights(n, self.concentration).to(energy)
        return (weights + expected_log_prob(energy, log_det, n, self.mean.shape[1], self.hyper)).logsumexp(-1)

    def parameter_kl(self) -> Tensor:
        factor, n = self._factor(), self._counts()
        square = (factor @ self.mean.unsqueeze(-1)).square().sum((1, 2))
        trace, log_det = factor.square().sum((1, 2)), self.log_diagonal.sum(-1)
        of_components = divergence(square, trace, log_det, n, self.mean.shape[1], self.hyper).sum()
        return (of_components + sticks.divergence(n, self.concentration)).to(self.mean)

    @torch.no_grad()
    def sample(self, n: Shape, context: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        shape = as_shape(n)
        total, dim = shape.numel(), self.mean.shape[1]
        noise = standard_normal((total, dim), self.mean, generator)
        which = pick(self.weights.log(), total, generator)
        freedom, stretch = predictive(self._counts(), dim, self.hyper)
        wide = stretch[which].sqrt().cpu() * stretches(freedom[which], total, generator)
        z = around(which, self.mean, self._factor(), noise * wide.to(noise).unsqueeze(-1))
        return z.view(*shape, *self.event_shape)

    @torch.no_grad()
    def fit_rows(self, rows: CodeRows, options: FitOptions) -> None:
        """Coordinate ascent on fresh draws in each of at most `max_steps` iterations (150 by default).

        n is the number of rows, however often each is drawn. Determined by `random_state`.
        """
        found = self._found(rows, options)
        # one more component holds the weight of all that have no rows
        for name, value in self._values(found, len(found.n) + 1).items():
            setattr(self, name, nn.Parameter(value))
        self.n_rows.fill_(len(rows))

    @property
    def awaits_codes(self) -> bool:
        """Whether it is as constructed, with components that have yet to part."""
        return not have_parted(self.mean)

    @torch.no_grad()
    def start_rows(self, rows: CodeRows, options: FitOptions) -> None:
        """Coordinate ascent as in `fit`, all K components staying: those without rows are the hyper-prior's."""
        found = self._found(rows, options)
        for name, value in self._values(found, self.truncation).items():
            getattr(self, name).copy_(value)

    def _found(self, rows: CodeRows, options: FitOptions) -> Posterior:
        return fit_mixture(
            rows,
            self.truncation,
            self.concentration,
            max_iterations=150 if options.max_steps is None else options.max_steps,
            random_state=options.random_state,
            progress=options.progress,
        )

    def _values(self, found: Posterior, n_components: int) -> dict[str, Tensor]:
        """The parameters of so many components: those found, then such as have no rows and are their hyper-prior."""
        hyper, dim = found.hyper, self.mean.shape[1]
        spare = n_components - len(found.n)
        n = torch.cat((found.n, found.n.new_full((spare,), NO_ROWS)))
        factor = inverse_factor(found.covariance)
        without = (-0.5 * hyper.log_variance).exp().expand(spare, dim)
        values = {
            "logits": (n / n.sum()).log(),
            "mean": torch.cat((found.mean, found.mean.new_zeros(spare, dim))),
            "log_diagonal": torch.cat((factor.diagonal(dim1=-2, dim2=-1), without)).log(),
            "lower": torch.nn.functional.pad(factor.flatten(1)[:, lower_index(dim)], (0, 0, 0, spare)),
            "log_rows": hyper.log_rows,
            "log_mean_rows": hyper.log_mean_rows,
            "log_variance": hyper.log_variance,
        }
        return {name: value.to(self.mean) for name, value in values.items()}

    def _counts(self) -> Tensor:
        """n_k (K,), float64."""
        return self.n_rows * self.logits.double().softmax(0)

    def _joint(self, z: Tensor) -> Tensor:
        """log E pi_k + log t_k(z): (..., K)."""
        energy, log_det = self._measured(z)
        n = self._counts()
        weights = sticks.log_mean_weights(n, self.concentration).to(energy)
        return weights + predictive_log_prob(energy, log_det, n, self.mean.shape[1], self.hyper)

    def _measured(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """|W_k (z - m_k)|^2 (..., K) and log det W_k (K,)."""
        flat = z.flatten(-len(self.event_shape))
        log_det = self.log_diagonal.sum(-1)
        log_prob = component_log_prob(flat.reshape(-1, flat.shape[-1]), self.mean, self._factor())  # (R, K)
        energy = 2 * (log_det - log_prob) - flat.shape[-1] * LOG_2PI
        return energy.clamp_min(0).view(*flat.shape[:-1], -1), log_det

    def _factor(self) -> Tensor:
        """W_k (K, D, D)."""
        return unpack_lower(self.log_diagonal.exp(), self.lower, self.below)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        resize(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)
