"""A second VAE on the latents of the first."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Generator, Tensor

from latentfit.data.batch import Batch
from latentfit.errors import InputError, ReliabilityWarning
from latentfit.likelihoods import Normal
from latentfit.model import fitting
from latentfit.model.contracts import LOG_2PI, Density, Shape, as_shape
from latentfit.model.objective import ELBO
from latentfit.model.rows import CodeRows, FitOptions
from latentfit.model.vae import VAEModule
from latentfit.networks import SkipMLP
from latentfit.posteriors import DiagonalPosterior
from latentfit.priors.second_model import SecondModel, ticks
from latentfit.priors.standard import StandardNormalPrior
from latentfit.training import isolated_rng
from latentfit.training.precision import in_float32
from latentfit.training.rng import standard_normal

#: gamma at the start and at least, in units of the whitened latents. Started at 1, u would carry nothing, and that is
#: a local optimum; at 0 the density of codes on a manifold would have no bound
START, FLOOR = 0.25, 0.01
#: nats per dimension below which the second stage carries nothing, and draws that are looked at
CARRIES, JUDGED = 0.01, 10_000
#: draws of u whose weights a fit maximises. With one, the bound itself, p leans to what r can follow and ends 0.1 (a
#: bent Gaussian) to 0.9 nats (ten clusters in 16 dimensions) lower, in half the time: benchmarks/two_stage_bound.py
FITTED_DRAWS = 5


class TwoStagePrior(SecondModel):
    r"""p(z) = E_{u ~ N(0, I)} N(z; g(u), gamma^2 I): a VAE on whitened z with as many dimensions and a learned gamma.

        bound(z) = E_{r(u|z)} log N(z; g(u), gamma^2 I) - KL(r(u|z) || N(0, I))

    `log_prob` is the log of the pseudo-marginal weight N(z; g(u), gamma^2 I) p(u) / r(u|z), u ~ r(u|z): noisy, and
    its exponential is unbiased for p(z), so that log p(x) with it is as right as with a density. It draws from
    torch's current random state. Mean and variance networks read their input a second time at their last layer, and
    start linear: p starts at N(0, I) and r at its exact posterior, for any gamma.

    `fit` maximises E log of the mean of five such weights, a tighter bound than the one above, which joint training
    uses.

    Args:
        latent_dim: D, or a shape (flattened).
        hidden_features: widths of the hidden layers; an int is used for three layers, None means 8 D within 64
            and 1024.
        inner_draws: u's per z, whose weights are averaged; more make `log_prob` less noisy.
        context_features: width of a context (..., C) that both networks read; with 0 a context is not used.
        active: the units the second stage acts on, found by `fit`; None for all (see `SecondModel`).

    Warning: r is a Gaussian without correlations, so p leans to shapes whose u such a Gaussian can follow: strongly
    bent codes come out some per cent too narrow (a bent Gaussian in 2 dimensions by 4 %).

    Source: Dai & Wipf (2019), arXiv:1903.05789; the tighter bound Burda, Grosse & Salakhutdinov (2016),
    arXiv:1509.00519; pseudo-marginal weights Andrieu & Roberts (2009), Annals of Statistics 37.

    Example:
        >>> prior = TwoStagePrior(4, hidden_features=16)
        >>> prior.log_prob(prior.sample(10)).shape
        torch.Size([10])
    """

    density: Density = "unbiased"
    network_calls = 1

    def __init__(
        self,
        latent_dim: Shape,
        hidden_features: int | tuple[int, ...] | None = None,
        inner_draws: int = 8,
        context_features: int = 0,
        active: tuple[int, ...] | None = None,
    ) -> None:
        if inner_draws < 1:
            raise InputError(f"two_stage: inner_draws must be at least 1, got {inner_draws}.")
        self.inner_draws, self.hidden_features = inner_draws, hidden_features
        super().__init__(latent_dim, context_features, active)

    def _build(self, dim: int) -> None:
        width = max(64, min(1024, 8 * dim)) if self.hidden_features is None else self.hidden_features
        hidden = (width,) * 3 if isinstance(width, int) else tuple(width)
        self.second = VAEModule(
            encoder=SkipMLP(dim, 2 * dim, self.context_features, hidden),
            decoder=SkipMLP(dim, dim, self.context_features, hidden),
            prior=StandardNormalPrior(dim),
            posterior=DiagonalPosterior(dim),
            likelihood=Normal(scale="learned", floor=FLOOR),
            conditional=self.context_features > 0,
        )
        self._start()

    @in_float32()
    def log_prob(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        rows, log_det = self._inside(z)
        batch = self._batch(rows, context)
        u, log_r = _defended(*self.second.encode(batch).moments(), self.inner_draws)  # (K, R, D), (K, R)
        log_w = self.second.log_likelihood(batch, u) + self.second.prior.log_prob(u) - log_r
        return (log_w.logsumexp(0) - math.log(self.inner_draws)).view(rows.shape[:-1]) + log_det

    @in_float32()
    def training_log_prob(self, z: Tensor, batch: Batch | None = None) -> Tensor:
        """The bound, by one draw of u and the analytic KL: z (S, N, *event_shape) -> (S, N)."""
        rows, log_det = self._inside(z)
        given = self._batch(rows, None if batch is None else batch.context)
        r = self.second.encode(given)
        u, _ = r.rsample_with_log_prob(1)
        kl: Any = r.kl(self.second.prior)  # closed between these two
        return (self.second.log_likelihood(given, u)[0] - kl).view(rows.shape[:-1]) + log_det

    @torch.no_grad()
    def sample(self, n: Shape, context: Tensor | None = None, generator: Generator | None = None) -> Tensor:
        """g(u) + gamma noise, u ~ N(0, I): n an int or a shape -> (*n, *event_shape)."""
        shape = as_shape(n)
        given = self._batch(self.second.prior.sample(shape, generator=generator), context)
        params = self.second.decode(given.x, given.context)
        rows = self.second.likelihood.sample(params, generator=generator)
        return self._outside(rows, shape, generator)

    def fit_rows(self, rows: CodeRows, options: FitOptions) -> None:
        """Whiten by the exact moments of q(z), start anew, and maximise E log of the mean of 5 weights on fresh draws.

        At most `max_steps` steps (2,000 to 4,000 by the number of dimensions), stopped by held-out rows, the best
        weights kept. Determined by `random_state`.

        Warns:
            ReliabilityWarning: the second stage carries nothing although q(z) is not Gaussian.
        """
        codes = self._codes(rows, options)
        device = self.whitening.mean.device
        with isolated_rng(options.random_state, device):
            self._start()
        fitting.fit(
            self.second,
            codes.train,
            X_validation=codes.held_out,
            objective=ELBO(n_samples=FITTED_DRAWS, importance_weighted=True),
            prepare=codes.draw,
            recipe=codes.recipe,
            random_state=options.random_state,
            progress=ticks(options.progress),
        )
        with isolated_rng(options.random_state, device):
            some = torch.randperm(len(codes.train))[:JUDGED].to(device)
            self._warn_if_collapsed(codes.draw(codes.train[some]))

    @torch.no_grad()
    def _start(self) -> None:
        """Draw the weights anew, around the linear solution of z ~ N(0, I): g(u) = a u, r = N(a z, gamma^2 I)."""
        dim = self.second.event_shape.numel()
        slope = math.sqrt(1 - START**2)
        identity = torch.eye(dim)
        encoder: Any = self.second.encoder
        decoder: Any = self.second.decoder
        likelihood: Any = self.second.likelihood
        for network in (encoder, decoder):
            network.reset_parameters()
        encoder.skip.weight.copy_(torch.cat((slope * identity, torch.zeros(dim, dim))))
        encoder.skip.bias[dim:] = 2 * math.log(START)
        decoder.skip.weight.copy_(slope * identity)
        likelihood.log_scale.fill_(0.5 * math.log(START**2 - FLOOR**2))

    @torch.no_grad()
    def _warn_if_collapsed(self, whitened: Batch) -> None:
        kl = self.second.encode(whitened).kl(self.second.prior)
        if kl is None or float(kl.mean()) > CARRIES * whitened.x.shape[1]:
            return
        z, n = whitened.x, len(whitened)
        # moments of a standard normal: E z^3 = 0 +- sqrt(15 / n), E z^4 = 3 +- sqrt(96 / n)
        skewed = (z.pow(3).mean(0).abs() > 5 * math.sqrt(15 / n)).any()
        heavy = ((z.pow(4).mean(0) - 3).abs() > 5 * math.sqrt(96 / n)).any()
        if skewed or heavy:
            warnings.warn(
                f"two_stage: the second stage has collapsed (its KL is {float(kl.mean()):.3f} nats), so it is one "
                "Gaussian, but the codes are not Gaussian: fit it again with another random_state or more steps.",
                ReliabilityWarning,
                stacklevel=3,
            )


def _defended(mean: Tensor, variance: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """n draws of r with a quarter of them wider, and the log-density of that mixture: (n, R, D), (n, R).

    r may be narrower than the posterior it stands for, and weights then have no variance. Wider by 1 / sqrt(D), which
    costs the draws about a nat at any D.
    """
    dim = mean.shape[-1]
    wide = 1 + 1 / math.sqrt(dim)
    noise = standard_normal((n, *mean.shape), mean)
    n_wide = n // 4
    noise[n - n_wide :] *= wide
    energy = -0.5 * noise.square().sum(-1)  # (n, R)
    log_r = energy + math.log1p(-n_wide / n)
    if n_wide:
        log_r = torch.logaddexp(log_r, math.log(n_wide / n) + energy / wide**2 - dim * math.log(wide))
    log_normaliser = 0.5 * (variance.log().sum(-1) + dim * LOG_2PI)
    return mean + variance.sqrt() * noise, log_r - log_normaliser
