"""Priors made of other things, their names and their imports."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
from torch import nn

from latentfit import priors
from latentfit.errors import CapabilityError, InputError
from latentfit.priors import DefensiveMixture, EmpiricalPrior, as_prior


def shifted(dim=2):
    mean = torch.full((10, dim), 4.0)
    return priors.create("learned_gaussian", latent_dim=dim).fit(mean, std=torch.ones_like(mean))


def standard(dim=2):
    return priors.create("standard", latent_dim=dim)


class WithDensity(priors.StandardNormalPrior):
    def __init__(self, density):
        super().__init__(2)
        self.density = density


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.99])
def test_defensive_ratios_are_bounded_below(weight):
    prior = DefensiveMixture(shifted(), standard(), weight).double()
    z = 10 * torch.randn(500, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gain = (prior.log_prob(z) - standard().log_prob(z)).detach()
    assert gain.min().item() >= math.log1p(-weight) - 1e-10


def test_defensive_without_weight_is_the_anchor_to_the_bit():
    prior = DefensiveMixture(shifted(), standard(), 0.0)
    z = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(prior.log_prob(z), standard().log_prob(z))


def test_defensive_draws_each_part_by_its_weight():
    """A share within 5 standard errors of w = 0.3."""
    n = 20_000
    prior = DefensiveMixture(shifted(), standard(), 0.3)
    z = prior.sample(n, generator=torch.Generator().manual_seed(0))
    share = (z.sum(-1) > 4).float().mean().item()
    assert share == pytest.approx(0.3, abs=5 * math.sqrt(0.21 / n) + 0.01)


@pytest.mark.parametrize(
    ("base", "anchor", "weight", "density"),
    [
        ("exact", "exact", 0.5, "exact"),
        ("unbiased", "exact", 0.5, "unbiased"),
        ("log_unbiased", "exact", 0.5, "approximate"),
        ("log_unbiased", "log_unbiased", 0.5, "approximate"),
        ("approximate", "exact", 0.5, "approximate"),
        ("none", "exact", 0.5, "none"),
        ("none", "exact", 0.0, "exact"),
    ],
)
def test_defensive_density_follows_its_parts(base, anchor, weight, density):
    assert DefensiveMixture(WithDensity(base), WithDensity(anchor), weight).density == density


def test_defensive_names_what_is_wrong():
    with pytest.raises(InputError, match=r"\[0, 0.99\]"):
        DefensiveMixture(shifted(), standard(), 1.0)
    with pytest.raises(InputError, match="one shape"):
        DefensiveMixture(shifted(2), standard(3), 0.5)


def test_empirical_draws_and_has_no_density():
    prior = EmpiricalPrior(2, lambda n: torch.randn(n, 2))
    before = torch.get_rng_state()
    a, b = (prior.sample((3, 4), generator=torch.Generator().manual_seed(0)) for _ in range(2))
    assert a.shape == (3, 4, 2)
    assert torch.equal(a, b)
    assert torch.equal(before, torch.get_rng_state())
    assert prior.density == "none"
    with pytest.raises(CapabilityError, match="no density"):
        prior.log_prob(a)
    with pytest.raises(InputError, match="sampler returned"):
        EmpiricalPrior(2, lambda n: torch.randn(n, 3)).sample(4)


def test_empirical_hands_its_generator_on():
    prior = EmpiricalPrior(2, lambda n, generator=None: torch.randn(n, 2, generator=generator))
    found = prior.sample(5, generator=torch.Generator().manual_seed(4))
    assert torch.equal(found, torch.randn(5, 2, generator=torch.Generator().manual_seed(4)))


def test_as_prior_of_a_torch_distribution():
    distribution = torch.distributions.Laplace(torch.zeros(3), torch.ones(3))
    prior = as_prior(distribution)
    z = prior.sample((2, 5), generator=torch.Generator().manual_seed(0))
    assert z.shape == (2, 5, 3)
    torch.testing.assert_close(prior.log_prob(z), distribution.log_prob(z).sum(-1))
    assert prior.config() == {"external": "prior"}
    assert as_prior(prior) is prior


def test_as_prior_finds_the_parameters_of_a_module():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(2))

        def log_prob(self, z):
            return -0.5 * (z - self.shift).square().sum(-1) - math.log(2 * math.pi)

        def sample(self, shape):
            return self.shift + torch.randn(*shape, 2)

    prior = as_prior(Own(), latent_dim=2)
    assert prior.n_parameters == 2
    assert prior.sample(3).shape == (3, 2)
    with pytest.raises(InputError, match="give latent_dim"):
        as_prior(Own())


def test_as_prior_of_a_conditional_zuko_flow():
    import zuko

    torch.manual_seed(0)
    prior = as_prior(zuko.flows.MAF(2, 3, transforms=1, hidden_features=(8,)), context_features=3)
    context = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    z = prior.sample(5, context)
    assert z.shape == (5, 2)
    assert prior.log_prob(z.expand(4, 5, 2), context).shape == (4, 5)
    with pytest.raises(InputError, match="needs a context"):
        prior.log_prob(z)


def test_as_prior_names_what_is_wrong():
    with pytest.raises(InputError, match="log_prob and sample"):
        as_prior(object())
    with pytest.raises(InputError, match="but the distribution is over"):
        as_prior(torch.distributions.Laplace(torch.zeros(3), torch.ones(3)), latent_dim=2)


@pytest.mark.parametrize(("alias", "name"), [("gmm", "mixture"), ("gaussian", "learned_gaussian")])
def test_aliases_are_answered(alias, name):
    with pytest.raises(InputError, match=f"calls it '{name}'"):
        priors.create(alias, latent_dim=2)


def test_arguments_are_checked():
    with pytest.raises(InputError, match="n_componets"):
        priors.create("mixture", latent_dim=2, n_componets=3)
    with pytest.raises(InputError, match="at least 1"):
        priors.create("mixture", latent_dim=2, n_components=0)
    with pytest.raises(InputError, match="covariance"):
        priors.create("learned_gaussian", latent_dim=2, covariance="diag")
    with pytest.raises(InputError, match="base is over latents"):
        priors.create("realnvp", latent_dim=2, base=standard(3))


def test_names_run_from_simple_to_rich():
    richer = ["standard", "learned_gaussian", "mixture", "realnvp", "two_stage", "flow_matching"]
    assert [name for name in priors.names() if name in richer] == richer


def test_importing_the_priors_is_light():
    heavy = {"sklearn", "pandas", "matplotlib", "plotly", "zuko", "typer", "rich", "jinja2", "scipy"}
    code = f"import sys, latentfit.priors; print(sorted({heavy!r} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
