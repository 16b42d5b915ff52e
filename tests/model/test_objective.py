"""The terms of the ELBO against closed forms, and what it refuses."""

import pytest
import torch
from torch import nn

import latentfit as lf
from latentfit.data import Batch
from latentfit.errors import CapabilityError, InputError
from latentfit.model.contracts import Penalty, Prior


def linear_vae(dim: int = 3, latent: int = 2, prior: Prior | str = "standard", **kwargs) -> lf.VAEModule:
    """A VAE with linear maps, float64."""
    torch.manual_seed(0)
    vae = lf.VAEModule(
        encoder=nn.Linear(dim, 2 * latent),
        decoder=nn.Linear(latent, dim),
        prior=prior,
        latent_dim=latent,
        likelihood=lf.likelihoods.create("normal", scale=0.5),
        **kwargs,
    )
    return vae.double()


@pytest.fixture
def x():
    return torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_analytic_and_monte_carlo_kl_agree(x):
    vae = linear_vae()
    generator = torch.Generator().manual_seed(0)
    analytic = lf.ELBO(kl="analytic")(vae, x)["kl"]
    draws = torch.stack([lf.ELBO(kl="monte_carlo")(vae, x, generator=generator)["kl"] for _ in range(400)])
    assert abs(draws.mean() - analytic) < 4 * draws.std() / 20


def test_the_analytic_kl_is_the_textbook_one(x):
    vae = linear_vae()
    mean, variance = vae.encode(x).moments()
    expected = 0.5 * (mean**2 + variance - 1 - variance.log()).sum(-1).mean()
    torch.testing.assert_close(lf.ELBO()(vae, x)["kl"], expected)


def test_loss_is_the_sum_of_its_terms_at_the_scheduled_weight(x):
    vae = linear_vae()
    objective = lf.ELBO(kl_weight=lf.schedules.linear(steps=10))
    for step in (0, 3, 10, 50):
        terms = objective(vae, x, step, torch.Generator().manual_seed(0))
        weight = min(1.0, step / 10)
        assert float(terms["kl_weight"]) == pytest.approx(weight)
        torch.testing.assert_close(terms["loss"], -terms["log_likelihood"] + weight * terms["kl"])
        torch.testing.assert_close(terms["elbo"], terms["log_likelihood"] - terms["kl"])


def test_row_weights_are_a_weighted_mean(x):
    vae = linear_vae()
    twice = Batch(torch.cat([x, x[:1]]))
    weighted = Batch(x, weight=torch.cat([torch.full((1,), 2.0), torch.ones(39)]).double())
    a = lf.ELBO()(vae, twice)["kl"]
    b = lf.ELBO()(vae, weighted)["kl"]
    torch.testing.assert_close(a, b)


def test_unobserved_entries_are_neither_read_nor_scored(x):
    vae = linear_vae()
    mask = torch.ones_like(x, dtype=torch.bool)
    mask[:, 2] = False
    values = []
    for filler in (0.0, torch.nan):
        hidden = x.clone()
        hidden[:, 2] = filler
        terms = lf.ELBO()(vae, Batch(hidden, mask=mask), generator=torch.Generator().manual_seed(0))
        values.append(terms["loss"])
        gradient = torch.autograd.grad(terms["loss"], list(vae.parameters()), allow_unused=True)
        assert all(g is None or bool(torch.isfinite(g).all()) for g in gradient)
    torch.testing.assert_close(values[0], values[1])


def test_standardised_data_are_scored_in_their_own_units(x):
    raw = 7 * x + 3
    standardise = lf.data.Standardise(3).fit(raw)
    plain, units = linear_vae(), linear_vae(preprocess=standardise.double())
    z = torch.randn(5, 40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    expected = plain.log_likelihood(standardise(raw), z) + standardise.log_det()
    torch.testing.assert_close(units.log_likelihood(raw, z), expected)
    torch.testing.assert_close(units.decode_mean(z), standardise.inverse(plain.decode_mean(z)))


class Distance(Penalty):
    """A penalty for the test: the mean square of z."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, z, q, model, batch, step):
        return self.weight * z.square().mean()


def test_a_penalty_enters_by_its_name_and_weight(x):
    vae = linear_vae()
    generator = torch.Generator()
    base = lf.ELBO()(vae, x, generator=generator.manual_seed(0))
    terms = lf.ELBO(penalties=[Distance(3.0)])(vae, x, generator=generator.manual_seed(0))
    torch.testing.assert_close(terms["loss"], base["loss"] + terms["Distance"])
    assert terms["Distance"].item() > 0


def test_a_prior_without_density_trains_only_at_kl_weight_0(x):
    prior = lf.priors.EmpiricalPrior(2, lambda n: torch.randn(n, 2))
    vae = linear_vae(prior=prior)
    with pytest.raises(CapabilityError, match="kl_weight=0"):
        lf.ELBO()(vae, x)
    assert "kl" not in lf.ELBO(kl_weight=0.0)(vae, x)


def test_an_analytic_kl_that_does_not_exist_is_refused(x):
    vae = linear_vae(prior="realnvp").double()
    with pytest.raises(CapabilityError, match="No analytic KL"):
        lf.ELBO(kl="analytic")(vae, x)


def test_shapes_that_do_not_meet_are_named():
    vae = lf.VAEModule(encoder=nn.Linear(3, 5), decoder=nn.Linear(2, 3), latent_dim=2)
    with pytest.raises(InputError, match=r"returned \(4, 5\).*needs \(4, 4\)"):
        vae.encode(torch.zeros(4, 3))
    with pytest.raises(InputError, match="posterior is over"):
        lf.VAEModule(nn.Linear(3, 4), nn.Linear(2, 3), latent_dim=3, posterior=lf.posteriors.DiagonalPosterior(2))


def test_a_deterministic_model_draws_itself():
    vae = linear_vae()
    assert list(vae.draws(3)) == [vae] * 3


def exact_log_px(vae, x):
    """log p(x) of `linear_vae` in closed form: (N,)."""
    loading, bias = vae.decoder.weight, vae.decoder.bias
    covariance = loading @ loading.T + 0.25 * torch.eye(len(bias), dtype=x.dtype)
    return torch.distributions.MultivariateNormal(bias, covariance).log_prob(x)


@torch.no_grad()
def test_the_importance_weighted_bound_rises_from_the_elbo_to_log_px(x):
    vae, bounds = linear_vae(), []
    for parameter in vae.encoder.parameters():
        parameter.zero_()  # q(z|x) is the prior: wide enough for weights without a tail
    for n in (2, 20, 5_000):
        objective = lf.ELBO(n_samples=n, importance_weighted=True)
        terms = [objective(vae, x, generator=torch.Generator().manual_seed(s)) for s in range(20)]
        bounds.append(torch.stack([t["bound"] for t in terms]).mean())
        assert all(float(t["loss"]) == -float(t["bound"]) for t in terms)
    elbo = lf.ELBO(n_samples=200)(vae, x, generator=torch.Generator().manual_seed(0))["elbo"]
    assert elbo < bounds[0] < bounds[1] < bounds[2]
    torch.testing.assert_close(bounds[2], exact_log_px(vae, x).mean(), atol=0.01, rtol=0)


@torch.no_grad()
def test_a_weighted_bound_weighs_the_ratio(x):
    """log 1/S sum_s p(x|z_s) (p(z_s) / q(z_s|x))^w by hand; at w = 0 nothing of the prior is left."""
    vae = linear_vae()
    for weight in (0.0, 0.3):
        objective = lf.ELBO(weight, n_samples=4, importance_weighted=True)
        bound = objective(vae, x, generator=torch.Generator().manual_seed(3))["bound"]
        z, log_q = vae.encode(x).rsample_with_log_prob(4, torch.Generator().manual_seed(3))
        per_draw = vae.log_likelihood(Batch(x), z) + weight * (vae.prior.log_prob(z) - log_q)
        torch.testing.assert_close(bound, per_draw.exp().mean(0).log().mean())


def test_what_an_importance_weighted_bound_cannot_be(x):
    with pytest.raises(InputError, match="n_samples=5 or so"):
        lf.ELBO(importance_weighted=True)
    with pytest.raises(InputError, match="no kl_term"):
        lf.ELBO(n_samples=5, importance_weighted=True, kl_term=lf.kl_terms.free_bits(nats=0.1))
    objective = lf.ELBO(n_samples=5, importance_weighted=True)
    assert not objective.is_elbo
    vae = linear_vae()
    bayesian = vae.with_parts(decoder=lf.bayes.create("mc_dropout", nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3))))
    with pytest.raises(CapabilityError, match="importance_weighted=False"):
        objective.check(bayesian)


class Recorded(nn.Linear):
    """A linear map that keeps what it returned."""

    def forward(self, x):
        self.last = super().forward(x)
        return self.last


def test_under_autocast_networks_are_bf16_and_densities_float32(x):
    vae = lf.VAEModule(Recorded(3, 4), Recorded(2, 3), "mixture", latent_dim=2, likelihood="normal")
    noise, x = torch.Generator(), x.float()
    with torch.autocast("cpu", torch.bfloat16):
        terms = lf.ELBO()(vae, x, 0, noise.manual_seed(0))
    assert vae.encoder.last.dtype == vae.decoder.last.dtype == torch.bfloat16
    features = vae.encoder.last.float()
    q = vae.posterior(features, Batch(x))
    z, log_q = q.rsample_with_log_prob(1, noise.manual_seed(0))
    kl = log_q - vae.prior.log_prob(z)
    assert terms["kl"].dtype == terms["log_likelihood"].dtype == torch.float32
    torch.testing.assert_close(terms["kl"], kl.mean(), rtol=1e-6, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):  # products of bf16 are not that
        coarse = log_q - vae.prior.log_prob(z)
    assert (coarse.mean() - kl.mean()).abs() > 1e-5


def test_the_networks_of_a_second_vae_are_a_density_too(x):
    prior = lf.priors.create("two_stage", latent_dim=2, hidden_features=8)
    vae = lf.VAEModule(Recorded(3, 4), Recorded(2, 3), prior, latent_dim=2, likelihood="normal")
    noise, x = torch.Generator(), x.float()
    with torch.autocast("cpu", torch.bfloat16), torch.random.fork_rng():
        torch.manual_seed(1)
        terms = lf.ELBO()(vae, x, 0, noise.manual_seed(0))
    z, log_q = vae.posterior(vae.encoder.last.float(), Batch(x)).rsample_with_log_prob(1, noise.manual_seed(0))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        kl = log_q - prior.training_log_prob(z)
    torch.testing.assert_close(terms["kl"], kl.mean(), rtol=1e-6, atol=1e-6)


def test_autocast_is_as_it_was_after_the_loss(x):
    vae = lf.VAEModule(nn.Linear(3, 4), nn.Linear(2, 3), "standard", latent_dim=2, likelihood="normal")
    with torch.autocast("cpu", torch.bfloat16):
        lf.ELBO()(vae, x.float())
        assert vae.decode(torch.zeros(1, 2)).dtype == torch.bfloat16
    assert vae.decode(torch.zeros(1, 2)).dtype == torch.float32
