"""Training a VAE: against probabilistic PCA, and the rules around the warm-up."""

import pytest
import torch
from torch import nn

import latentfit as lf
from latentfit.data import Batch, LinearGaussian
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


def clusters(n: int) -> torch.Tensor:
    """Rows (n, 8) in twelve clusters of three latent dimensions."""
    generator = torch.Generator().manual_seed(0)
    means, loading = 2.0 * torch.randn(12, 3, generator=generator), torch.randn(3, 8, generator=generator)
    z = means[torch.randint(12, (n,), generator=generator)] + 0.2 * torch.randn(n, 3, generator=generator)
    return z @ loading + 0.3 * torch.randn(n, 8, generator=generator)


def mixture_vae() -> lf.VAEModule:
    vae = normal_vae(8, 3)
    return vae.with_parts(prior=lf.priors.create("mixture", latent_dim=3, n_components=12))


def test_a_joint_mixture_finds_the_clusters():
    """No mixture that is fitted to its final codes is much better than the one that was trained with them."""
    x = clusters(3_000)
    vae = mixture_vae()
    lf.fit(vae, x[:2_000], max_steps=1_500, learning_rate=1e-2, random_state=0)
    q = vae.encode(Batch(x))
    mean, variance = q.moments()
    after = lf.priors.create("mixture", latent_dim=3, n_components=12)
    after.fit(mean[:2_000], var=variance[:2_000])
    z, _ = q.rsample_with_log_prob(1)
    with torch.no_grad():
        joint, post_hoc = (prior.log_prob(z[0, 2_000:]).mean().item() for prior in (vae.prior, after))
    assert joint > post_hoc - 0.1


@pytest.mark.parametrize("stop_at", [30, 45])
def test_a_run_that_starts_its_prior_resumes_to_the_bit(tmp_path, stop_at):
    """Before and after the prior's start, at a fifth of the run."""
    settings = {"max_steps": 200, "validate_every": 20, "random_state": 3}
    x, vaes = clusters(300), []
    for folder in (None, tmp_path):
        if folder is not None:
            interrupt(mixture_vae(), x, stop_at, run_dir=folder, **settings)
        vaes.append(mixture_vae())
        lf.fit(vaes[-1], x, run_dir=folder, **settings)
    for name, value in vaes[0].state_dict().items():
        assert torch.equal(value, vaes[1].state_dict()[name]), name


def interrupt(vae, x, stop_at, **settings):
    def progress(event):
        if event.step >= stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lf.fit(vae, x, progress=progress, **settings)


def test_a_mixture_that_is_a_target_or_was_fitted_stays_where_it_is():
    """A start is for a prior that the KL trains and that is as constructed."""
    x = clusters(300)
    vae = mixture_vae()
    before = vae.prior.mean.clone()
    penalty = lf.penalties.create("mmd")
    lf.fit(vae, x, objective=lf.ELBO(kl_weight=0.0, penalties=[penalty]), max_steps=50)
    assert torch.equal(vae.prior.mean, before)
    vae = mixture_vae()
    with torch.no_grad():
        vae.prior.mean.add_(3.0)
    lf.fit(vae, x, max_steps=50, learning_rate=1e-6)
    assert vae.prior.mean.mean() > 2.9


def test_a_conditional_flow_starts_its_base_at_the_codes():
    """With the context of each row, without which it has no density."""
    x = clusters(300)
    context = (x[:, :1] > 0).float()
    base = lf.priors.create("mixture", latent_dim=3, n_components=4)
    prior = lf.priors.create("realnvp", latent_dim=3, transforms=2, hidden_features=8, base=base, context_features=1)
    encoder = lf.networks.create("mlp", in_shape=8, out_shape=6, context_features=1)
    decoder = lf.networks.create("mlp", in_shape=3, out_shape=8, context_features=1)
    vae = lf.VAEModule(encoder, decoder, prior, likelihood="normal", conditional=True)
    assert prior.awaits_codes
    lf.fit(vae, Batch(x, context), max_steps=50)
    assert not prior.awaits_codes


def test_a_learned_sigma_that_lags_is_moved_to_the_residuals_own():
    """After 20 steps at a small rate sigma is near 1; the rows' own is 0.1, and half of the entries are missing."""
    generator = torch.Generator().manual_seed(0)
    x = 0.1 * torch.randn(400, 3, generator=generator)
    mask = torch.rand(400, 3, generator=generator) < 0.5
    for likelihood in ({"scale": "learned"}, {"scale": "column", "n_columns": 3}):
        vae = normal_vae(3, 1, **likelihood)
        given = Batch(x.masked_fill(~mask, torch.nan), mask=mask)
        vae.encoder.requires_grad_(False).apply(lambda part: _zero(part))
        vae.decoder.requires_grad_(False).apply(lambda part: _zero(part))
        result = lf.fit(vae, given, max_steps=20, learning_rate=1e-4)
        sigma = vae.likelihood._scale(torch.zeros(1, 3), None)
        torch.testing.assert_close(sigma, torch.full_like(sigma, 0.1), rtol=0.15, atol=0)
        assert result.best_value < 0  # nats of 1.5 entries at sigma 0.1 are above 1, at sigma 1 below -1


def test_a_decoder_that_overfits_keeps_the_sigma_it_learned():
    """Its training residuals are too small for held-out rows."""
    generator = torch.Generator().manual_seed(0)
    train, held_out = torch.zeros(50, 3), torch.randn(50, 3, generator=generator)
    vae = normal_vae(3, 1)
    lf.fit(vae, train, X_validation=held_out, max_steps=20, learning_rate=1e-4)
    assert vae.likelihood._scale(torch.zeros(1, 3), None).item() == pytest.approx(1.0, abs=0.1)


def _zero(part: nn.Module) -> None:
    for parameter in part.parameters(recurse=False):
        nn.init.zeros_(parameter)


def test_validation_counts_rows_by_their_weights():
    """Also where the rows are scored in parts whose weights differ."""
    from latentfit.model import fitting

    vae = normal_vae(3, 1).eval()
    x = torch.cat((torch.zeros(5_000, 3), torch.ones(5_000, 3)))
    weight = torch.cat((torch.full((5_000,), 0.1), torch.ones(5_000)))
    parts = [Batch(x[:5_000]), Batch(x[5_000:])]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        low, high = (fitting.validation_loss(vae, lf.ELBO(), part) for part in parts)
        found = fitting.validation_loss(vae, lf.ELBO(), Batch(x, weight=weight))
    assert found == pytest.approx((low + 10 * high) / 11, abs=0.05)
