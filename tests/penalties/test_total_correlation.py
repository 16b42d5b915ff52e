"""The stratified estimate against the exact mixture."""

import itertools
import math

import pytest
import torch
from torch import nn

import latentfit as lf
from latentfit.errors import CapabilityError, InputError
from latentfit.penalties.total_correlation import aggregate_log_density
from latentfit.posteriors import DiagonalGaussian


def codes(n, dim=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    return DiagonalGaussian(mean, 0.3 + torch.rand(n, dim, generator=generator, dtype=torch.float64))


def exact(z, q):
    """log q_N(z) and log q_N(z_d) of the mixture of all rows: z (S, N, D)."""
    units = torch.distributions.Normal(q.mean, q.std).log_prob(z[:, :, None])  # (S, N, N, D)
    return tuple((t.logsumexp(2) - math.log(len(q.mean))) for t in (units.sum(-1), units))


def test_the_whole_training_set_is_the_exact_mixture():
    q = codes(12)
    z, _ = q.rsample_with_log_prob(3, torch.Generator().manual_seed(0))
    for found, wanted in zip(aggregate_log_density(z, q, 12), exact(z, q), strict=True):
        torch.testing.assert_close(found, wanted)


def test_the_mean_density_over_all_batches_is_the_exact_one():
    """All batches of 3 of 6 rows that hold row 0: unbiased for q_N at its draw. In column 0 the weight is not."""
    q = codes(6)
    z, _ = q.rsample_with_log_prob(1, torch.Generator().manual_seed(0))
    wanted = exact(z, q)[0][0, 0].exp()
    found = []
    for others in itertools.permutations(range(1, 6), 2):
        rows = [others[0], 0, others[1]]  # not in the first column
        part = DiagonalGaussian(q.mean[rows], q.std[rows])
        found.append(aggregate_log_density(z[:, rows], part, 6)[0][0, 1].exp())
    torch.testing.assert_close(torch.stack(found).mean(), wanted)


def test_the_penalty_is_the_total_correlation_of_a_correlated_gaussian():
    """q(z) = N(0, C) with correlation 0.8: TC = -log(1 - 0.64) / 2 = 0.51; means carry nearly all of it."""
    generator = torch.Generator().manual_seed(0)
    factor = torch.linalg.cholesky(torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=torch.float64))
    q = DiagonalGaussian(
        0.98 * torch.randn(2_000, 2, generator=generator, dtype=torch.float64) @ factor.T,
        torch.full((2_000, 2), 0.2, dtype=torch.float64),
    )
    covariance = 0.98**2 * factor @ factor.T + 0.04 * torch.eye(2, dtype=torch.float64)
    wanted = 0.5 * (covariance.diagonal().log().sum() - covariance.logdet())
    z, _ = q.rsample_with_log_prob(1, generator)
    penalty = lf.penalties.total_correlation(weight=2.0)
    penalty.n_train = 2_000
    found = penalty(z, q, None, lf.Batch(torch.zeros(2_000, 1)), 0)
    assert found.item() == pytest.approx(2 * wanted.item(), abs=0.12)


def test_what_it_cannot_do_is_said():
    model = lf.VAEModule(nn.Linear(3, 5), nn.Linear(2, 3), latent_dim=2, posterior="full", likelihood="normal")
    objective = lf.ELBO(penalties=[lf.penalties.total_correlation()])
    with pytest.raises(InputError, match="number of training rows"):
        objective(model, torch.zeros(4, 3))
    objective.n_train = 10
    with pytest.raises(CapabilityError, match="FullGaussian depend on one another"):
        objective(model, torch.zeros(4, 3))
