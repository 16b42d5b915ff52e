"""Full Bayes over one Gaussian: its mean and covariance have a posterior, its predictive heavy tails."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Generator, Tensor, nn

from latentfit.data.batch import Batch
from latentfit.flows.mixing import lower_index, unpack_lower
from latentfit.model.contracts import Prior, Shape, as_shape
from latentfit.model.rows import CodeRows, FitOptions
from latentfit.priors.gaussians import stretches
from latentfit.priors.moments import moments, scatter
from latentfit.priors.normal_wishart import (
    Hyper,
    Statistics,
    divergence,
    expected_log_prob,
    inverse_factor,
    predictive,
    predictive_log_prob,
)
from latentfit.training.rng import standard_normal

#: s and kappa0 before the data have said better
START_ROWS = 10.0


class HierarchicalPrior(Prior):
    r"""z ~ N(mu, C) with (mu, C) unknown: p(z) is their posterior's predictive, a Student-t.

        p(z) = t_{s + n + 2}(z; m, c (W^T W)^{-1}),   (mu, C) given n rows ~ Normal-inverse-Wishart

    with the hyper-prior E C = tau^2 I, worth s rows, and a mean of 0, worth kappa0; see `normal_wishart`. With
    covariance="diagonal" every coordinate has a Normal-inverse-gamma posterior of its own, and the three
    hyper-parameters are shared. Few rows leave heavy tails and stay near the hyper-prior, many give N(m, C).

    `log_prob` is the predictive. In training the ELBO takes E log N(z; mu, C) over the posterior
    (`training_log_prob`) and the posterior's KL from the hyper-prior, once for all n rows (`parameter_kl` / n): a
    bound on log p of all rows, whose maximum over the posterior is the conjugate one. So joint training learns m, W
    and the hyper-parameters by gradient; `bind` (called by `latentfit.fit`) says how many rows there are. A context
    is not used.

    Args:
        latent_dim: D, or a shape (flattened).
        covariance: "full" or "diagonal".

    Source: Gelman et al. (2013), Bayesian Data Analysis, section 3.6; Bishop (2006), section 10.2.

    Example:
        >>> mean = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
        >>> prior = HierarchicalPrior(2).fit(mean, std=torch.ones(50, 2))
        >>> prior.log_prob(torch.zeros(4, 2)).shape, prior.degrees_of_freedom > 50
        (torch.Size([4]), True)
    """

    below: Tensor
    n_rows: Tensor

    def __init__(self, latent_dim: Shape, covariance: Literal["full", "diagonal"] = "full") -> None:
        super().__init__(latent_dim)
        dim = self.event_shape.numel()
        self.covariance = covariance
        self.mean = nn.Parameter(torch.zeros(dim))
        self.log_diagonal = nn.Parameter(torch.zeros(dim))  # of W
        if covariance == "full":
            self.register_buffer("below", lower_index(dim), persistent=False)
            self.lower = nn.Parameter(torch.zeros(dim * (dim - 1) // 2))
        self.log_rows = nn.Parameter(torch.tensor(START_ROWS).log())
        self.log_mean_rows = nn.Parameter(torch.tensor(START_ROWS).log())
        self.log_variance = nn.Parameter(torch.tensor(0.0))
        # an integer, so that no change of dtype rounds it
        self.register_buffer("n_rows", torch.tensor(0))

    @property
    def hyper(self) -> Hyper:
        """s, kappa0 and tau^2, as logarithms."""
        return Hyper(self.log_rows, self.log_mean_rows, self.log_variance)

    @property
    def degrees_of_freedom(self) -> float:
        """Of the predictive."""
        return predictive(self.n_rows, self._dim, self.hyper)[0].item()

    def bind(self, model: nn.Module | None = None, data: Batch | None = None) -> None:
        """Learn the number of rows that the posterior rests on."""
        if data is not None:
            self.n_rows.fill_(len(data))

    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        return predictive_log_prob(*self._measured(z), self.n_rows, self._dim, self.hyper).sum(-1)

    def training_log_prob(self, z: Tensor, batch: Batch | None = None) -> Tensor:
        return expected_log_prob(*self._measured(z), self.n_rows, self._dim, self.hyper).sum(-1)

    def parameter_kl(self) -> Tensor:
        if self.covariance == "full":
            factor = self._factor()
            square, trace = (factor @ self.mean).square().sum()[None], factor.square().sum()[None]
        else:
            precision = (2 * self.log_diagonal).exp()
            square, trace = precision * self.mean.square(), precision
        kl = divergence(square, trace, self._log_det(), self.n_rows, self._dim, self.hyper).sum()
        return kl.to(self.mean)

    @torch.no_grad()
    def sample(self, n: Shape, context: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        shape = as_shape(n)
        total, dim = shape.numel(), len(self.mean)
        noise = standard_normal((total, dim), self.mean, generator)
        freedom, stretch = predictive(self.n_rows, self._dim, self.hyper)
        # one chi^2 for all of z, or one for each coordinate
        each = 1 if self.covariance == "full" else dim
        wide = stretch.sqrt().cpu() * stretches(freedom, total * each, generator).view(total, each)
        noise = noise * wide.to(noise)
        if self.covariance == "full":
            offset = torch.linalg.solve_triangular(self._factor(), noise.T, upper=False).T
        else:
            offset = noise / self.log_diagonal.exp()
        return (self.mean + offset).reshape(*shape, *self.event_shape)

    @torch.no_grad()
    def fit_rows(self, rows: CodeRows, options: FitOptions) -> None:
        """The conjugate posterior given the exact moments of q(z), its hyper-prior by evidence; nothing is random.

        n is the number of rows, however often each would be drawn.
        """
        statistics = _statistics(rows, self.covariance)
        hyper = statistics.best_hyper()
        centre, covariance = statistics.posterior(hyper)
        self.n_rows.fill_(len(rows))
        for parameter, value in zip(
            (self.log_rows, self.log_mean_rows, self.log_variance),
            (hyper.log_rows, hyper.log_mean_rows, hyper.log_variance),
            strict=True,
        ):
            parameter.copy_(value)
        self.mean.copy_(centre.flatten())
        if self.covariance == "full":
            factor = inverse_factor(covariance)[0]
            self.log_diagonal.copy_(factor.diagonal().log())
            self.lower.copy_(factor.flatten()[lower_index(len(factor))])
        else:
            self.log_diagonal.copy_(-0.5 * covariance.flatten().log())

    @property
    def _dim(self) -> int:
        """d of one posterior: D of the only one, or 1 of each of D."""
        return len(self.mean) if self.covariance == "full" else 1

    def _measured(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """|W (z - m)|^2 (..., B) and log det W (B,) of the B posteriors."""
        offset = z.flatten(-len(self.event_shape)) - self.mean
        if self.covariance == "full":
            energy = (offset @ self._factor().T).square().sum(-1, keepdim=True)
        else:
            energy = (offset * self.log_diagonal.exp()).square()
        return energy, self._log_det()

    def _log_det(self) -> Tensor:
        return self.log_diagonal.sum()[None] if self.covariance == "full" else self.log_diagonal

    def _factor(self) -> Tensor:
        return unpack_lower(self.log_diagonal.exp(), self.lower, self.below)


def _statistics(rows: CodeRows, covariance: Literal["full", "diagonal"]) -> Statistics:
    """Expected counts, means and sums of squares of z, where each row is a Gaussian: one group, or one a coordinate."""
    centre, variance = moments(rows)
    n, dim = rows.mean.shape
    if covariance == "diagonal":
        return Statistics(
            torch.full((dim,), float(n), dtype=centre.dtype), centre[:, None], n * variance[:, None, None]
        )
    total = scatter(rows, centre)
    total.diagonal().copy_(n * variance)
    return Statistics(torch.tensor([float(n)], dtype=centre.dtype), centre[None], total[None])
