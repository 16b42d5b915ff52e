"""Training a VAE: against probabilistic PCA, and the rules around the warm-up."""

import pytest
import torch
from torch import nn

import latentfit as lf
from latentfit.data import LinearGaussian
from latentfit.errors import InputError
from latentfit.evaluation import log_likelihood
from latentfit.training.rng import isolated_rng


def network(in_shape, out_shape):
    return lf.networks.create("mlp", in_shape=in_shape, out_shape=out_shape, hidden=[])


def normal_vae(dim: int, latent: int, **likelihood) -> lf.VAEModule:
    with isolated_rng(0):
        return lf.VAEModule(
            encoder=network(dim, 2 * latent),
            decoder=network(latent, dim),
            latent_dim=latent,
            likelihood=lf.likelihoods.create("normal", **likelihood),
        )


@pytest.mark.parametrize("scale", ["learned", "optimal"])
def test_a_linear_vae_reaches_probabilistic_pca(scale):
    from sklearn.decomposition import PCA

    truth = LinearGaussian(data_dim=8, latent_dim=2, noise=0.5, random_state=0)
    x = truth.sample(4_000, random_state=1)[0].float()
    train, test = x[:3_000], x[3_000:]
    vae = normal_vae(8, 2, scale=scale)
    lf.fit(vae, train, max_steps=1_500, learning_rate=1e-2, batch_size=256, random_state=0)
    ours = log_likelihood(vae, test, X_train=train, n_importance_samples=500).estimate.value
    theirs = PCA(2).fit(train.numpy()).score(test.numpy())
    assert ours == pytest.approx(theirs, abs=0.1)


def test_a_warm_up_longer_than_the_run_is_refused_with_the_arithmetic():
    objective = lf.ELBO(kl_weight=lf.schedules.linear(steps=5_000))
    with pytest.raises(InputError, match=r"warm-up \(5,000 steps\) is longer than the run: 100 steps.*0\.02"):
        lf.fit(normal_vae(3, 1), torch.randn(50, 3), objective=objective, max_steps=100)


def test_early_stopping_waits_for_the_warm_up():
    objective = lf.ELBO(kl_weight=lf.schedules.linear(steps=150))
    result = lf.fit(
        normal_vae(3, 1),
        torch.randn(60, 3, generator=torch.Generator().manual_seed(0)),
        objective=objective,
        max_steps=200,
        validate_every=10,
        patience=1,
        learning_rate=1e-6,
    )
    assert result.steps >= 150


def test_patience_none_never_stops_early():
    x = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))  # nothing to learn: it soon overfits
    settings = {"max_steps": 400, "validate_every": 10, "learning_rate": 0.1}
    assert lf.fit(normal_vae(3, 1), x, **settings).stopped == "early"  # so the next line can fail
    assert lf.fit(normal_vae(3, 1), x, patience=None, **settings).steps == 400


def test_fit_is_repeatable_and_leaves_the_random_state_alone():
    x = torch.randn(80, 3, generator=torch.Generator().manual_seed(0))
    states = []
    before = torch.get_rng_state()
    for _ in range(2):
        vae = normal_vae(3, 1)
        lf.fit(vae, x, max_steps=30)
        states.append(torch.cat([p.flatten() for p in vae.parameters()]))
    assert torch.equal(states[0], states[1])
    assert torch.equal(before, torch.get_rng_state())


def test_data_that_the_likelihood_cannot_score_are_refused_before_training():
    vae = lf.VAEModule(nn.Linear(3, 2), nn.Linear(1, 3), latent_dim=1, likelihood="bernoulli")
    with pytest.raises(InputError, match="needs 0 or 1"):
        lf.fit(vae, torch.full((20, 3), 0.5), max_steps=5)


def test_an_unknown_setting_is_named():
    with pytest.raises(InputError, match="no setting 'epochs'"):
        lf.fit(normal_vae(3, 1), torch.zeros(20, 3), epochs=3)
