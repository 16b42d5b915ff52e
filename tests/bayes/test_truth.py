"""Against exact posteriors: Bayesian linear regression, and closed forms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import latentfit as lf
from latentfit import bayes
from latentfit.bayes.langevin import langevin
from latentfit.bayes.layers import key_of
from latentfit.data import Batch, Rows
from latentfit.likelihoods import Normal
from latentfit.training import Recipe, minimise

NOISE, SCALE = 0.5, 1.5


class Regression(nn.Module):
    """x = (features, targets); z are the features, exactly; p(target | z, w) = N(decoder(z), NOISE^2)."""

    def __init__(self, decoder: nn.Module, n_features: int) -> None:
        super().__init__()
        self.decoder, self.n_features = decoder, n_features
        self.likelihood = Normal(scale=NOISE)

    def encode(self, batch: Batch) -> SimpleNamespace:
        features = batch.x[:, : self.n_features]
        return SimpleNamespace(rsample_with_log_prob=lambda n: (features.expand(n, *features.shape), None))

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        return self.decoder(z)

    def log_likelihood(self, batch: Batch, z: Tensor) -> Tensor:
        params = self.decode(z.flatten(0, -2)).view(*z.shape[:-1], -1)  # (S, N, 1)
        return self.likelihood.log_prob(batch.x[:, self.n_features :], params)

    def loss(self, batch: Batch) -> Mapping[str, Tensor]:
        z, _ = self.encode(batch).rsample_with_log_prob(1)
        return {"loss": -self.log_likelihood(batch, z).mean()}


@dataclass(frozen=True)
class Known:
    """Data of a regression with three features and a bias, and its exact posterior under N(0, SCALE^2) weights."""

    x: Tensor  # (N, 4): features, target
    mean: Tensor  # (4,): weights, then the bias
    covariance: Tensor  # (4, 4)

    @property
    def rows(self) -> Rows:
        return Rows(Batch(self.x))

    def network(self) -> nn.Linear:
        """At the posterior's mean."""
        layer = nn.Linear(3, 1)
        with torch.no_grad():
            layer.weight.copy_(self.mean[None, :3])
            layer.bias.copy_(self.mean[3:])
        return layer


@pytest.fixture(scope="session")
def known() -> Known:
    g = torch.Generator().manual_seed(0)
    features = torch.randn(120, 3, generator=g) @ torch.tensor([[1.0, 0.6, 0.0], [0.0, 0.8, 0.3], [0.0, 0.0, 0.7]])
    target = features @ torch.tensor([1.0, -0.5, 0.3]) + 0.4 + NOISE * torch.randn(120, generator=g)
    phi = torch.cat([features, torch.ones(120, 1)], 1).double()
    precision = phi.T @ phi / NOISE**2 + torch.eye(4) / SCALE**2
    covariance = torch.linalg.inv(precision)
    mean = covariance @ phi.T @ target.double() / NOISE**2
    return Known(torch.cat([features, target[:, None]], 1), mean.float(), covariance.float())


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    return Recipe(max_steps=200, batch_size=40)


def joined(layer: nn.Module) -> Tensor:
    """A dense layer's weights and bias as one vector."""
    return torch.cat([layer.weight.detach().flatten(), layer.bias.detach().flatten()])


def drawn(network, n: int, seed: int = 0) -> torch.Tensor:
    """(n, P) weights of n draws."""
    return torch.stack([joined(d) for d in network.draws(n, torch.Generator().manual_seed(seed))])


def test_the_mean_fields_spread_is_that_of_the_precisions_diagonal(known):
    """sd = diag(H)^(-1/2), the best independent Gaussian; the marginal sd, diag(H^-1)^(1/2), is larger."""
    network = bayes.MeanField(nn.Linear(3, 1), prior_scale=SCALE)
    model = Regression(network, 3)

    def loss(batch: Batch, step: int) -> dict[str, torch.Tensor]:
        return {"loss": model.loss(batch)["loss"] + network.parameter_kl() / len(known.x)}

    recipe = Recipe(max_steps=3000, batch_size=120, learning_rate=0.02, schedule="cosine", ema_decay=0.995)
    minimise(network, loss, known.rows, recipe)
    got = torch.cat([network.log_variance[key_of(name)].detach().flatten() for name in ("weight", "bias")])
    got = (0.5 * got).exp()
    expected = torch.linalg.inv(known.covariance).diagonal().rsqrt()
    torch.testing.assert_close(got, expected, rtol=0.03, atol=0)
    torch.testing.assert_close(joined(network.network), known.mean, rtol=0, atol=0.15 * float(expected.min()))
    spread = drawn(network, 2000).std(0)
    torch.testing.assert_close(spread, got, rtol=0.07, atol=0)  # 2,000 draws know a sd to 1.6 %


@pytest.mark.parametrize("covariance", ["full", "kron"])
def test_laplace_is_the_exact_posterior_of_a_linear_model(known, recipe, covariance):
    """The curvature of a Normal likelihood is the same for all rows, so the Kronecker form is exact too."""
    network = bayes.Laplace(known.network(), covariance, prior_scale=SCALE)
    network.explore(Regression(network, 3), None, known.rows, recipe, 0)
    draws = drawn(network, 5_000).double()
    error = torch.linalg.norm(torch.cov(draws.T) - known.covariance) / torch.linalg.norm(known.covariance)
    assert error < 0.08  # 5,000 draws know it to 3 %
    if covariance == "full":
        exact = network.scale[0] @ network.scale[0].T
    else:
        root = network.scale / (network.curvature[0] * network.spectrum + network.precision).sqrt()
        exact = root @ root.T
    torch.testing.assert_close(exact, known.covariance, rtol=0.01, atol=0.01 * float(known.covariance.diagonal().min()))


def test_diagonal_laplace_keeps_the_precisions_diagonal(known, recipe):
    network = bayes.Laplace(known.network(), "diagonal", prior_scale=SCALE)
    network.explore(Regression(network, 3), None, known.rows, recipe, 0)
    torch.testing.assert_close(
        network.scale[0], torch.linalg.inv(known.covariance).diagonal().rsqrt(), rtol=1e-4, atol=0
    )


def test_langevin_dynamics_sample_the_posterior(known):
    """Step size 0.05 in conditional variances: within 15 % (relative Frobenius)."""
    network = known.network()
    model = Regression(network, 3)
    parameters = [network.weight, network.bias]
    squares = [known.x[:, :3].square().mean(0)[None] / NOISE**2, torch.ones(1) / NOISE**2]

    def gradient() -> tuple[torch.Tensor, ...]:
        batch = Batch(known.x)
        return torch.autograd.grad(model.loss(batch)["loss"], parameters)

    torch.manual_seed(0)
    walk = langevin(parameters, gradient, squares, [SCALE, SCALE], 120, step_size=0.05)
    samples = []
    for _ in range(30_000):
        next(walk)
        samples.append(joined(network))
    samples = torch.stack(samples[2000:])
    error = torch.linalg.norm(torch.cov(samples.T) - known.covariance) / torch.linalg.norm(known.covariance)
    assert error < 0.15
    assert (samples.mean(0) - known.mean).abs().max() < 0.3 * known.covariance.diagonal().sqrt().min()


def test_sgld_keeps_iterates_of_its_walk_and_leaves_the_rest_alone(known, recipe):
    network = bayes.SGLD(known.network(), n_draws=400, thinning=20, prior_scale=SCALE, step_size=0.2)
    before = joined(network.network)
    model = Regression(network, 3)
    network.explore(model, model.loss, known.rows, Recipe(max_steps=10, batch_size=120), 0)
    assert model.decoder is network
    torch.testing.assert_close(joined(network.network), before, rtol=0, atol=0)
    samples = drawn(network, 400)
    assert len(torch.unique(samples, dim=0)) == 400  # every one of them once
    ratio = samples.std(0) / known.covariance.diagonal().sqrt()
    assert ((ratio > 0.75) & (ratio < 1.3)).all()


def test_a_cold_walk_is_narrower_by_the_root_of_its_temperature(known):
    settings = {"n_draws": 400, "thinning": 20, "prior_scale": SCALE, "step_size": 0.2}
    spread = []
    for temperature in (1.0, 0.25):
        network = bayes.SGLD(known.network(), temperature=temperature, **settings)
        model = Regression(network, 3)
        network.explore(model, model.loss, known.rows, Recipe(max_steps=10, batch_size=120), 0)
        spread.append(drawn(network, 400).std(0))
    torch.testing.assert_close(spread[1], 0.5 * spread[0], rtol=0.02, atol=0)  # the same noise, and a linear model


def test_swags_spread_is_that_of_the_iterates(known):
    """What theory fixes: mean and variance are the iterates' own; the low-rank part carries half of them."""
    network = bayes.SWAG(known.network(), rank=40, share=8.0, rate=1.0, every=10)
    model = Regression(network, 3)
    network.explore(model, model.loss, known.rows, Recipe(max_steps=1000, batch_size=20, learning_rate=5e-3), 0)
    samples = drawn(network, 3000)
    kept = network.deviations[: int(network.n_collected)]
    half = 0.5 * (network.variance.diag() + kept.T @ kept / (len(kept) - 1))
    error = torch.linalg.norm(torch.cov(samples.T) - half) / torch.linalg.norm(half)
    assert error < 0.1
    # near the optimum, and as wide as a constant rate makes it: not nothing, not the whole posterior
    assert (joined(network.network) - known.mean).abs().max() < known.covariance.diagonal().sqrt().max()
    assert (network.variance > 0).all()


def test_running_moments_are_those_of_all_iterates():
    from latentfit.bayes.iterates import Moments

    iterates = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) + 100
    moments = Moments(iterates[0], 8)
    for w in iterates:
        moments.add([w[:2], w[2:]])
    torch.testing.assert_close(moments.mean, iterates.mean(0))
    torch.testing.assert_close(moments.variance, iterates.var(0), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("prior_scale", [0.7, "learned"])
def test_the_kl_of_a_mean_field_is_closed_form(prior_scale):
    network = bayes.MeanField(nn.Linear(4, 3), prior_scale=prior_scale)
    expected = 0.0
    for name in ("weight", "bias"):
        mean, sd = getattr(network.network, name), (0.5 * network.log_variance[key_of(name)]).exp()
        s = (mean.square() + sd.square()).mean().sqrt() if prior_scale == "learned" else torch.tensor(prior_scale)
        q, p = torch.distributions.Normal(mean, sd), torch.distributions.Normal(0.0, s)
        expected = expected + torch.distributions.kl_divergence(q, p).sum()
    torch.testing.assert_close(network.parameter_kl(), expected)
    network.temperature = 0.1
    torch.testing.assert_close(network.parameter_kl(), 0.1 * expected)


def test_local_reparameterisation_has_the_law_of_sampled_weights():
    torch.manual_seed(0)
    network = bayes.MeanField(nn.Linear(3, 2), initial_scale=1.0)
    x = torch.tensor([[1.0, -2.0, 0.5]])
    with torch.no_grad():
        local = torch.cat([network.train()(x.expand(5_000, 3)) for _ in range(4)])
    generator = torch.Generator().manual_seed(1)
    weights = torch.stack([d(x)[0].detach() for d in network.draws(5_000, generator)])
    scale = weights.std(0)
    assert (local.mean(0) - weights.mean(0)).abs().max() < 4 * math.sqrt(1 / 20_000 + 1 / 5_000) * scale.max()
    torch.testing.assert_close(local.std(0), scale, rtol=0.05, atol=0)  # 4.5 standard errors
    assert abs(float(torch.corrcoef(local.T)[0, 1])) < 0.03  # outputs of one row are independent


def test_a_draw_of_dropout_is_one_mask_for_all_rows_and_right_on_average():
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 3))
    network = bayes.MCDropout(plain, rate=0.3)
    x = torch.randn(5, 2)
    outputs = torch.stack([d(x).detach() for d in network.draws(3000, torch.Generator().manual_seed(0))])
    error = outputs.std(0) / math.sqrt(3000)
    assert ((outputs.mean(0) - plain(x)).abs() < 4.5 * error).all()
    hidden = plain[1](plain[0](x))
    mask = next(network.draws(1, torch.Generator().manual_seed(3)))[2].weight / plain[2].weight
    torch.testing.assert_close(mask.std(0), torch.zeros(16))  # a unit is on or off for all outputs
    assert set(np.round(mask[0].detach().numpy(), 4)) == {0.0, np.float32(round(1 / 0.7, 4))}
    assert hidden.shape == (5, 16)


def test_weight_decay_is_called_so_and_is_no_kl():
    network = bayes.MCDropout(nn.Linear(3, 2), rate=0.2, prior_scale=2.0)
    squares = sum(p.square().sum() for p in network.network.parameters())
    torch.testing.assert_close(network.weight_decay(), 0.8 / 8 * squares)
    assert not hasattr(network, "parameter_kl")
    assert bayes.MCDropout(nn.Linear(3, 2), prior_scale=None).weight_decay() == 0


@pytest.mark.slow
def test_ninety_per_cent_bands_cover():
    """200 data sets of an identified model, one weight: bands from Laplace, Langevin's walk and a mean field."""
    rng = np.random.default_rng(0)
    covered = {"laplace": 0, "sgld": 0, "mean_field": 0}
    few = Recipe(max_steps=1, batch_size=30)
    gradient = Recipe(max_steps=300, batch_size=30, learning_rate=0.05, schedule="cosine", ema_decay=0.95)
    for repeat in range(200):
        w = SCALE * rng.normal()
        z = rng.normal(size=(30, 1))
        x = torch.tensor(np.concatenate([z, w * z + NOISE * rng.normal(size=(30, 1))], 1), dtype=torch.float32)
        precision = float((x[:, 0] ** 2).sum()) / NOISE**2 + SCALE**-2
        layer = nn.Linear(1, 1, bias=False)
        with torch.no_grad():
            layer.weight.fill_(float((x[:, 0] * x[:, 1]).sum()) / NOISE**2 / precision)
        rows = Rows(Batch(x))
        for name, network in (
            ("laplace", bayes.Laplace(layer, "full", prior_scale=SCALE)),
            ("sgld", bayes.SGLD(layer, n_draws=400, step_size=0.3, prior_scale=SCALE)),
            ("mean_field", bayes.MeanField(layer, prior_scale=SCALE)),
        ):
            model = Regression(network, 1)
            if name == "mean_field":

                def loss(batch: Batch, step: int, model=model, network=network) -> dict[str, Tensor]:
                    return {"loss": model.loss(batch)["loss"] + network.parameter_kl() / 30}

                minimise(network, loss, rows, gradient)
            else:
                network.explore(model, model.loss, rows, few, repeat)
            draws = torch.cat([d.weight.detach().flatten() for d in network.draws(400)])
            low, high = torch.quantile(draws, torch.tensor([0.05, 0.95]))
            covered[name] += int(low <= w <= high)
    assert all(170 <= n <= 190 for n in covered.values()), covered


def test_laplace_learns_nothing_from_entries_that_are_missing():
    """Also of a likelihood with two parameters an entry, whose curvature is a Fisher matrix."""
    decoder = bayes.Laplace(lf.networks.create("mlp", in_shape=2, out_shape=[3, 2], hidden=[8]), "diagonal")
    model = lf.VAEModule(
        encoder=lf.networks.create("mlp", in_shape=3, out_shape=4, hidden=[8]),
        decoder=decoder,
        latent_dim=2,
        likelihood=lf.likelihoods.create("normal", scale="row"),
    )
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(20, 3, dtype=torch.bool)
    mask[:, 0] = False
    _, curved = decoder._curvature(model, Batch(x, mask=mask))
    assert not curved.view(20, 3, 2)[:, 0].any()
    assert (curved.view(20, 3, 2)[:, 1:] > 0).any()
