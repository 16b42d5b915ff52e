"""The second stage: its pseudo-marginal density, its spread, log p(x) with two stages, the guard against collapse."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from latentfit import ELBO, VAEModule, priors
from latentfit.data.batch import Batch
from latentfit.errors import CapabilityError, ReliabilityWarning
from latentfit.evaluation.codes import Codes
from latentfit.evaluation.gap import prior_gap
from latentfit.evaluation.ladder import climb
from latentfit.evaluation.likelihood import log_likelihood
from latentfit.likelihoods import Normal
from latentfit.priors import two_stage

LOG_2PI = math.log(2 * math.pi)


def banana(n, seed):
    """A bent Gaussian: means, spreads, draws, each (n, 2)."""
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, n, generator=generator)
    mean = torch.stack((1.5 * a, 0.5 * b + 0.6 * (a.square() - 1)), 1)
    std = torch.full_like(mean, 0.2)
    return mean, std, mean + std * torch.randn(n, 2, generator=generator)


@pytest.fixture(scope="module")
def prior():
    mean, std, _ = banana(3_000, 0)
    torch.manual_seed(0)
    return priors.create("two_stage", latent_dim=2, hidden_features=(64, 64)).fit(mean, std=std, max_steps=600)


@torch.no_grad()
def exact_log_prob(prior, z):
    """log p(z) by quadrature over u: z (R, 2) -> (R,)."""
    line = torch.linspace(-5, 5, 81)
    u = torch.cartesian_prod(line, line)
    log_pu = -0.5 * u.square().sum(-1) - LOG_2PI + 2 * math.log(10 / 80)
    centre = prior.second.decode(u)
    rows, log_det = prior.whitening(z)
    log_gamma = prior.second.likelihood.log_prob(torch.zeros(1, 2), torch.zeros(1, 2)) + LOG_2PI  # -2 log gamma
    precision = log_gamma.exp()
    parts = []
    for block in rows.split(256):
        squares = (block.unsqueeze(1) - centre).square().sum(-1)
        parts.append((log_pu - 0.5 * precision * squares).logsumexp(1) + log_gamma - LOG_2PI)
    return torch.cat(parts) + log_det


def test_the_weights_are_unbiased_for_the_density(prior):
    """Mean weight over 2,000 draws against quadrature, within 5 of its standard errors, at 40 codes."""
    _, _, z = banana(40, 1)
    exact = exact_log_prob(prior, z)
    with torch.no_grad(), torch.random.fork_rng([]):
        torch.manual_seed(0)
        weights = torch.cat([prior.log_prob(z.expand(500, 40, 2)) for _ in range(4)]).sub(exact).exp().double()
    error = weights.std(0) / math.sqrt(len(weights))
    assert ((weights.mean(0) - 1).abs() < 5 * error).all()
    assert error.max() < 0.2


def test_the_bound_is_below_and_more_draws_are_tighter(prior):
    _, _, z = banana(2_000, 2)
    exact = exact_log_prob(prior, z).mean()
    many = priors.create("two_stage", latent_dim=2, hidden_features=(64, 64), inner_draws=64)
    many.load_state_dict(prior.state_dict())
    with torch.no_grad(), torch.random.fork_rng([]):
        torch.manual_seed(0)
        bound = prior.training_log_prob(z.unsqueeze(0)).mean()
        loose, tight = prior.log_prob(z).mean(), many.log_prob(z).mean()
    assert bound < loose + 0.02
    assert loose < tight < exact + 0.01
    assert exact - tight < 0.05


def test_it_beats_one_gaussian(prior):
    mean, std, _ = banana(3_000, 0)
    gaussian = priors.create("learned_gaussian", latent_dim=2).fit(mean, std=std)
    _, _, z = banana(1_500, 3)
    with torch.no_grad():
        assert exact_log_prob(prior, z).mean() > gaussian.log_prob(z).mean() + 0.1


def test_samples_have_the_spread_of_the_codes():
    """Standard deviations of clusters within 5 % per dimension: an unlearned gamma shrinks them to half."""
    generator = torch.Generator().manual_seed(0)
    mean = 2.0 * torch.randint(2, (3_000, 3), generator=generator) - 1
    std = torch.full_like(mean, 0.5)
    torch.manual_seed(0)
    clusters = priors.create("two_stage", latent_dim=3, hidden_features=(64, 64)).fit(mean, std=std, max_steps=500)
    wanted = (mean.var(0) + std.square().mean(0)).sqrt()
    drawn = clusters.sample(20_000, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(drawn.std(0), wanted, rtol=0.05, atol=0)


@pytest.mark.filterwarnings("ignore:Importance sampling is unreliable")
def test_log_px_with_two_stages_agrees_with_quadrature(prior):
    """Within 0.02 nats, through the importance sampler that scores every other prior."""
    torch.manual_seed(0)
    decoder = nn.Linear(2, 3)
    vae = VAEModule(
        encoder=nn.Linear(3, 4),
        decoder=decoder,
        prior=prior,
        likelihood=Normal(scale=0.5),
        latent_dim=2,
    )
    x = decoder(prior.sample(12, generator=torch.Generator().manual_seed(5))).detach()
    x = x + 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(6))
    line = torch.linspace(-7, 7, 71)
    z = torch.cartesian_prod(line, line)
    log_pz = exact_log_prob(prior, z) + 2 * math.log(14 / 70)
    with torch.no_grad():
        log_px = vae.likelihood.log_prob(x, decoder(z).unsqueeze(1))  # (grid, N)
    exact = (log_px + log_pz.unsqueeze(1)).logsumexp(0).double()
    found = log_likelihood(vae, x, n_importance_samples=2_000, X_train=x, refinement_steps=30)
    assert found.unreliable <= 0.1
    assert abs(found.values.mean() - exact.mean().item()) < 0.02
    repeat = log_likelihood(vae, x, n_importance_samples=25, X_train=x, refinement_steps=0)
    again = log_likelihood(vae, x, n_importance_samples=25, X_train=x, refinement_steps=0)
    assert (repeat.values == again.values).all()  # the inner noise is seeded too


def test_it_is_a_rung_but_never_what_is_replaced(prior):
    """E log of an unbiased estimate is at most log r: as r the gap stays "at least", as p it would grow."""
    mean, std, _ = banana(1_200, 7)
    codes = Codes(mean, std)
    standard = priors.create("standard", latent_dim=2)
    gap = prior_gap(prior, standard, codes)
    z = codes.sample(4, torch.Generator().manual_seed(0))
    exact = exact_log_prob(prior, z.view(-1, 2)).mean() - standard.log_prob(z).mean()
    assert 0.1 < gap.value < exact
    with pytest.raises(CapabilityError, match="needs exact densities"):
        prior_gap(standard, prior, codes)
    rung = priors.create("two_stage", latent_dim=2, hidden_features=(32, 32))
    ladder = climb(codes[:800], codes[800:1000], codes[1000:], standard, rungs=[rung], max_steps=200)
    assert ladder["two_stage"].gap.value > 0


def test_jointly_it_is_a_hierarchical_prior(prior):
    """The objective's KL is that of the bound: E log q(z|x) - E log p(z|u) + KL(r(u|z) || p(u))."""
    torch.manual_seed(1)
    vae = VAEModule(nn.Linear(5, 4), nn.Linear(2, 5), priors.create("two_stage", latent_dim=2, hidden_features=8))
    terms = ELBO()(vae, Batch(torch.rand(64, 5).round()))
    terms["loss"].backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in vae.parameters())
    standard = VAEModule(vae.encoder, vae.decoder, "standard", latent_dim=2)
    fresh = [ELBO()(vae, Batch(torch.rand(2_000, 5).round()))["kl"] for _ in range(20)]
    closed = ELBO()(standard, Batch(torch.rand(2_000, 5).round()))["kl"]
    assert torch.stack(fresh).mean().item() == pytest.approx(closed.item(), abs=0.03)  # it starts at N(0, I)


def test_a_collapsed_second_stage_is_named(monkeypatch):
    monkeypatch.setattr(two_stage, "START", 0.99999)
    sign = 2.0 * torch.randint(2, (2_000, 1), generator=torch.Generator().manual_seed(8)) - 1
    mean = sign.repeat(1, 3)
    prior = priors.create("two_stage", latent_dim=3, hidden_features=8)
    with pytest.warns(ReliabilityWarning, match="the second stage has collapsed"):
        prior.fit(mean, std=torch.full_like(mean, 0.3), max_steps=1)


@pytest.mark.slow
def test_a_context_reaches_both_networks():
    """p(z | c) with means at 2 c: samples follow their contexts."""
    generator = torch.Generator().manual_seed(9)
    context = 2.0 * torch.randint(2, (2_000, 1), generator=generator) - 1
    mean = 2 * context + 0.3 * torch.randn(2_000, 1, generator=generator)
    prior = priors.create("two_stage", latent_dim=1, hidden_features=(32, 32), context_features=1)
    prior.fit(mean, std=torch.full_like(mean, 0.2), context=context, max_steps=400)
    for value in (-1.0, 1.0):
        drawn = prior.sample(2_000, torch.tensor([value]), torch.Generator().manual_seed(10))
        assert drawn.mean().item() == pytest.approx(2 * value, abs=0.3)


@pytest.mark.parametrize("name", ["two_stage", "flow_matching"])
def test_collapsed_units_keep_their_exact_law(name):
    """Units that give N(0, 1) whatever x is are left out, and cost nothing; a refit to other codes takes them in."""
    sign = 2.0 * torch.randint(2, (600, 1), generator=torch.Generator().manual_seed(11)) - 1
    mean, std = torch.zeros(600, 4), torch.ones(600, 4)
    mean[:, [1, 3]], std[:, [1, 3]] = 1.2 * sign, 0.4
    prior = priors.create(name, latent_dim=4, hidden_features=16).fit(mean, std=std, max_steps=20)
    assert prior.active == (1, 3)
    assert prior.config()["args"]["active"] == [1, 3]
    z = prior.sample(4_000, generator=torch.Generator().manual_seed(12))
    assert z[:, [0, 2]].std().item() == pytest.approx(1.0, abs=0.05)
    shifted = z[:200].clone()
    shifted[:, 0] += 1.0
    with torch.no_grad():
        scores = []
        for value in (z[:200], shifted):
            with torch.random.fork_rng([]):
                torch.manual_seed(0)
                scores.append(prior.log_prob(value))
    closed = -0.5 * (shifted[:, 0].square() - z[:200, 0].square())
    torch.testing.assert_close(scores[1] - scores[0], closed, rtol=0, atol=1e-4)
    again = prior.fit(
        mean[:, [1, 3, 1, 3]] + torch.eye(4)[torch.arange(600) % 4], std=std[:, [1, 3, 1, 3]], max_steps=5
    )
    assert again.active is None
    assert again.sample(3).shape == (3, 4)
