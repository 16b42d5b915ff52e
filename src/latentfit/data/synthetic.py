"""Sets whose truth is known: log p(x), posterior, ELBO and q(z) in closed form, mismatch by quadrature."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from latentfit.errors import InputError

LOG_2PI = math.log(2 * math.pi)


class LinearGaussian:
    r"""z ~ N(0, I), x given z ~ N(W z + b, noise^2 I): the VAE whose every quantity is known.

    .. math:: p(x) = N(b, W W^T + \sigma^2 I), \quad p(z | x) = N(\Sigma W^T (x - b) / \sigma^2, \Sigma),
              \quad \Sigma = (I + W^T W / \sigma^2)^{-1}

    Everything is float64. This is probabilistic PCA (Tipping & Bishop 1999); Lucas et al. (2019,
    arXiv:1911.02469) give the optimal diagonal posterior.

    Args:
        data_dim: D.
        latent_dim: K.
        noise: standard deviation of x given z.
        random_state: seed of W (D, K) and b (D,).

    Example:
        >>> truth = LinearGaussian(data_dim=3, latent_dim=2)
        >>> x, z = truth.sample(5)
        >>> bool((truth.elbo(x) <= truth.log_prob(x)).all())
        True
    """

    def __init__(self, data_dim: int, latent_dim: int, noise: float = 0.5, random_state: int = 0) -> None:
        if data_dim < 1 or latent_dim < 1 or not noise > 0:
            raise InputError(
                f"LinearGaussian needs positive sizes and noise, got {data_dim} x {latent_dim}, noise {noise}."
            )
        rng = np.random.default_rng(random_state)
        self.data_dim, self.latent_dim, self.noise = data_dim, latent_dim, noise
        self.weight = torch.from_numpy(rng.standard_normal((data_dim, latent_dim)))
        self.bias = torch.from_numpy(rng.standard_normal(data_dim))
        self.covariance = self.weight @ self.weight.T + noise**2 * torch.eye(data_dim, dtype=torch.float64)
        precision = torch.eye(latent_dim, dtype=torch.float64) + self.weight.T @ self.weight / noise**2
        #: covariance of p(z given x), (K, K), the same for every x
        self.posterior_covariance = torch.linalg.inv(precision)
        #: variances of the diagonal posterior that maximises the ELBO, (K,): 1 / diagonal of the precision
        self.optimal_variance = 1 / precision.diagonal()

    def sample(self, n: int, random_state: int = 0) -> tuple[Tensor, Tensor]:
        """n rows and their latents: x (n, D), z (n, K)."""
        rng = np.random.default_rng(random_state)
        z = torch.from_numpy(rng.standard_normal((n, self.latent_dim)))
        noise = torch.from_numpy(rng.standard_normal((n, self.data_dim)))
        return z @ self.weight.T + self.bias + self.noise * noise, z

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), exact: x (..., D) -> (...), nats."""
        return _normal_log_prob(x.double() - self.bias, self.covariance)

    def expected_log_prob(self) -> float:
        """E[log p(x)] over the population, nats: minus the entropy of x."""
        return -0.5 * (self.data_dim * (LOG_2PI + 1) + _log_det(self.covariance))

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """p(z given x): mean (..., K), covariance (K, K)."""
        mean = (x.double() - self.bias) @ self.weight @ self.posterior_covariance / self.noise**2
        return mean, self.posterior_covariance

    def elbo(self, x: Tensor, covariance: Tensor | None = None) -> Tensor:
        """log p(x) - KL(q || p(z given x)) of q = N(posterior mean, covariance): x (..., D) -> (...), nats.

        Args:
            x: (..., D).
            covariance: (K, K) of q; the optimal diagonal one by default.
        """
        return self.log_prob(x) - self.inference_gap(covariance)

    def inference_gap(self, covariance: Tensor | None = None) -> float:
        """log p(x) - ELBO, the same for every x, nats; the optimal diagonal posterior's by default."""
        s = self._spread(covariance)
        trace = float((torch.linalg.inv(self.posterior_covariance) * s).sum())
        return 0.5 * (trace - self.latent_dim - _log_det(s) + _log_det(self.posterior_covariance))

    def expected_kl(self, covariance: Tensor | None = None) -> float:
        """E_x KL(q(z given x) || N(0, I)) over the population, nats."""
        s = self._spread(covariance)
        second_moment = float((s + self._mean_covariance()).trace())
        return 0.5 * (second_moment - self.latent_dim - _log_det(s))

    def aggregate(self, covariance: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """q(z), a normal: mean (K,) zero, covariance (K, K); N(0, I) if q is the exact posterior."""
        return torch.zeros(self.latent_dim, dtype=torch.float64), self._mean_covariance() + self._spread(covariance)

    def mismatch(self, covariance: Tensor | None = None) -> float:
        """KL(q(z) || N(0, I)), nats."""
        c = self.aggregate(covariance)[1]
        return 0.5 * (float(c.trace()) - self.latent_dim - _log_det(c))

    def _mean_covariance(self) -> Tensor:
        """Covariance of the posterior means over the population: total minus within, I - Sigma."""
        return torch.eye(self.latent_dim, dtype=torch.float64) - self.posterior_covariance

    def _spread(self, covariance: Tensor | None) -> Tensor:
        return torch.diag(self.optimal_variance) if covariance is None else covariance.double()


@dataclass(frozen=True, slots=True)
class KnownLatents:
    """Codes of n rows whose q(z) over the population is known.

    q(z) is the mixture below in each coordinate of z @ rotation, independently.

    Attributes:
        mean: (n, D) of q(z given x).
        std: (n, D) of q(z given x).
        mismatch: KL(q(z) || N(0, I)), nats, exact to 1e-9.
        weights: (K,) of one coordinate's mixture.
        centres: (K,).
        scales: (K,), the codes' own std included.
        rotation: (D, D) orthogonal.
    """

    mean: Tensor
    std: Tensor
    mismatch: float
    weights: Tensor
    centres: Tensor
    scales: Tensor
    rotation: Tensor

    def log_q(self, z: Tensor) -> Tensor:
        """log q(z) over the population, exact: (..., D) -> (...), nats."""
        u = (z @ self.rotation).unsqueeze(-1)  # (..., D, 1)
        log_terms = (
            self.weights.log() - 0.5 * (((u - self.centres) / self.scales).square() + LOG_2PI) - self.scales.log()
        )
        return log_terms.logsumexp(-1).sum(-1)

    def sample(self, n: int, random_state: int = 0) -> Tensor:
        """n independent draws of q(z), (n, D)."""
        rng = np.random.default_rng(random_state)
        u = _mixture_draws(rng, (n, len(self.rotation)), *(t.double().numpy() for t in self._mixture()))
        return torch.from_numpy(u).to(self.mean) @ self.rotation.T

    def _mixture(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.weights, self.centres, self.scales


def gaussian_mixture_latents(
    n: int,
    dim: int,
    *,
    centres: Sequence[float] = (-1.0, 1.0),
    component_std: float | Sequence[float] = 0.4,
    weights: Sequence[float] | None = None,
    code_std: float = 0.3,
    rotate: bool = False,
    random_state: int = 0,
    dtype: torch.dtype = torch.float32,
) -> KnownLatents:
    """Codes N(mu, code_std^2 I), mu drawn from a mixture: q(z) is a mixture and its mismatch known.

    Coordinates are independent, so KL(q(z) || N(0, I)) is `dim` times an integral over the line. N(0, I) and
    isotropic codes do not change under a rotation, so `rotate=True` makes the mixture dense without changing
    the mismatch.

    Args:
        n: rows.
        dim: D.
        centres: (K,) of one coordinate's mixture of means.
        component_std: of the means around their centre, one or (K,).
        weights: (K,), equal by default.
        code_std: of each code around its mean.
        rotate: turn the coordinates by a random orthogonal matrix.
        random_state: seed.
        dtype: of the tensors.

    Example:
        >>> latents = gaussian_mixture_latents(100, dim=4)
        >>> round(latents.mismatch, 3)
        0.742
    """
    m = np.asarray(centres, dtype=np.float64)
    tau = np.broadcast_to(np.asarray(component_std, dtype=np.float64), m.shape)
    w = np.full(m.shape, 1 / m.size) if weights is None else np.asarray(weights, dtype=np.float64)
    if m.ndim != 1 or w.shape != m.shape or (w <= 0).any() or abs(w.sum() - 1) > 1e-9:
        raise InputError(f"A mixture of {m.size} centres needs as many positive weights that sum to 1, got {weights}.")
    if (tau < 0).any() or not code_std > 0:
        raise InputError(f"Spreads must be positive, got component_std {component_std}, code_std {code_std}.")
    rng = np.random.default_rng(random_state)
    total = np.sqrt(tau**2 + code_std**2)
    means = _mixture_draws(rng, (n, dim), w, m, tau)
    rotation = np.linalg.qr(rng.standard_normal((dim, dim)))[0] if rotate else np.eye(dim)

    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(dtype)

    return KnownLatents(
        mean=tensor(means @ rotation.T),
        std=torch.full((n, dim), code_std, dtype=dtype),
        mismatch=dim * kl_mixture_from_normal(w, m, total),
        weights=tensor(w),
        centres=tensor(m),
        scales=tensor(total),
        rotation=tensor(rotation),
    )


def zero_mismatch_latents(
    n: int, dim: int, spread: float = 0.5, random_state: int = 0, dtype: torch.dtype = torch.float32
) -> KnownLatents:
    """Codes with means ~ N(0, (1 - spread^2) I) and std `spread`: q(z) is N(0, I) and the mismatch 0.

    An estimator that reports nats here reports its own bias.

    Example:
        >>> zero_mismatch_latents(10, dim=3).mismatch
        0.0
    """
    if not 0 < spread < 1:
        raise InputError(f"spread must be between 0 and 1, got {spread}.")
    rng = np.random.default_rng(random_state)
    means = math.sqrt(1 - spread**2) * rng.standard_normal((n, dim))
    one = torch.ones(1, dtype=dtype)
    return KnownLatents(
        mean=torch.from_numpy(means).to(dtype),
        std=torch.full((n, dim), spread, dtype=dtype),
        mismatch=0.0,
        weights=one,
        centres=torch.zeros(1, dtype=dtype),
        scales=one,
        rotation=torch.eye(dim, dtype=dtype),
    )


def kl_mixture_from_normal(weights: np.ndarray, centres: np.ndarray, scales: np.ndarray) -> float:
    """KL(sum_k w_k N(m_k, s_k^2) || N(0, 1)) on the line, nats, by the trapezoidal rule.

    The integrand is analytic and decays, so the rule converges exponentially: 40 points per smallest scale
    give 1e-12.

    Example:
        >>> kl_mixture_from_normal(np.ones(1), np.array([2.0]), np.ones(1))  # (2^2) / 2
        2.0
    """
    low, high = (centres - 12 * scales).min(), (centres + 12 * scales).max()
    u = np.linspace(low, high, max(2001, math.ceil(40 * (high - low) / scales.min())))
    q = np.zeros_like(u)
    for w, m, s in zip(weights, centres, scales, strict=True):
        q += w * np.exp(-0.5 * ((u - m) / s) ** 2) / (s * math.sqrt(2 * math.pi))
    with np.errstate(divide="ignore", invalid="ignore"):
        integrand = np.where(q > 0, q * (np.log(q) + 0.5 * u**2 + 0.5 * LOG_2PI), 0.0)
    return float(round(integrand.sum() * (u[1] - u[0]), 12))


def _mixture_draws(
    rng: np.random.Generator, shape: tuple[int, int], w: np.ndarray, m: np.ndarray, s: np.ndarray
) -> np.ndarray:
    k = rng.choice(m.size, size=shape, p=w / w.sum())
    return m[k] + s[k] * rng.standard_normal(shape)


def _log_det(matrix: Tensor) -> float:
    return float(torch.linalg.slogdet(matrix).logabsdet)


def _normal_log_prob(centred: Tensor, covariance: Tensor) -> Tensor:
    normal = torch.distributions.MultivariateNormal(torch.zeros(covariance.shape[0]).double(), covariance)
    return normal.log_prob(centred)
