"""Rows whose units are correlated given x: every prior is fitted to the correlations too."""

from __future__ import annotations

import math

import pytest
import torch

from latentfit import priors
from latentfit.errors import InputError
from latentfit.model import CodeRows
from latentfit.model.rows import draw_packed
from latentfit.priors.active import active_units
from latentfit.priors.moments import exact_moments

RHO = 0.95
COVARIANCE = torch.tensor([[1.0, RHO], [RHO, 1.0]])
#: log density that a prior at the truth has, and that one at N(0, I) has
TRUE = -0.5 * torch.logdet(COVARIANCE).item() - 1 - math.log(2 * math.pi)
INDEPENDENT = -1 - math.log(2 * math.pi)


def rows(n: int = 1500) -> tuple[torch.Tensor, torch.Tensor]:
    """All rows alike: N(0, COVARIANCE), which no mean shows."""
    return torch.zeros(n, 2), torch.linalg.cholesky(COVARIANCE).expand(n, 2, 2)


@pytest.mark.parametrize(
    "name",
    [
        "learned_gaussian",
        "mixture",
        "hierarchical",
        "dp_mixture",
        "realnvp",
        "nsf",
        "maf",
        "two_stage",
        "flow_matching",
    ],
)
def test_a_prior_learns_the_correlations_of_the_rows(name):
    mean, factor = rows()
    prior = priors.create(name, latent_dim=2).fit(mean, scale_tril=factor, random_state=0).eval()
    z = torch.distributions.MultivariateNormal(torch.zeros(2), COVARIANCE).sample((20_000,))
    with torch.no_grad():
        found = prior.log_prob(z).mean().item()
    assert found == pytest.approx(TRUE, abs=0.06)
    assert TRUE > INDEPENDENT + 1.1


def test_draws_and_moments_are_those_of_the_rows():
    generator = torch.Generator().manual_seed(0)
    factor = (1 + torch.randn(2000, 3, 3, generator=generator)).tril()
    given = CodeRows(torch.randn(2000, 3, generator=generator), factor.norm(dim=-1), factor=factor)
    centre, covariance = exact_moments(given)
    z = torch.cat([given.draw(generator) for _ in range(60)]).double()
    torch.testing.assert_close(z.mean(0), centre, atol=0.02, rtol=0)
    torch.testing.assert_close(z.T.cov(), covariance, atol=0.1, rtol=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        packed = torch.cat([draw_packed(given.packed().x) for _ in range(60)]).double()
    torch.testing.assert_close(packed.T.cov(), covariance, atol=0.1, rtol=0)
    assert covariance[0, 2] > 0.8
    some = given.units([2, 0])
    torch.testing.assert_close(exact_moments(some)[1].diagonal(), covariance.diagonal()[[2, 0]])


def test_a_unit_that_another_determines_is_not_left_out():
    """Marginally the first two are N(0, 1) for every row; together they are not."""
    mean = torch.cat((torch.zeros(100, 2), torch.linspace(-2, 2, 100)[:, None]), 1)
    factor = torch.eye(3).repeat(100, 1, 1)
    factor[:, :2, :2] = torch.linalg.cholesky(COVARIANCE)
    assert active_units(CodeRows(mean, torch.ones(100, 3))) == (2,)
    assert active_units(CodeRows(mean, torch.ones(100, 3), factor=factor)) is None


@pytest.mark.parametrize("ratio", [0.5, 1e-3, 1e-5])
def test_how_far_a_unit_is_determined_by_another(ratio):
    factor = torch.tensor([[1.0, 0.0], [math.sqrt(1 - ratio**2), ratio]]).expand(10, 2, 2)
    found = CodeRows(torch.zeros(10, 2), torch.ones(10, 2), factor=factor).conditional_std()
    torch.testing.assert_close(found[:, 1], torch.full((10,), ratio), rtol=0.01, atol=0)


def test_scale_tril_is_checked():
    mean, factor = rows(100)
    prior = priors.create("learned_gaussian", latent_dim=2)
    with pytest.raises(InputError, match="give scale_tril alone"):
        prior.fit(mean, scale_tril=factor, std=torch.ones(100, 2))
    with pytest.raises(InputError, match=r"expected \(100, 2, 2\)"):
        prior.fit(mean, scale_tril=factor[:, :1])
