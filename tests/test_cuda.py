"""All of it on a GPU, where there is one: what stands on a CPU must not meet what stands on the card."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import latentfit as lf
from latentfit import methods, saving
from latentfit.data import Batch
from latentfit.evaluation.ais import ais_log_likelihood
from latentfit.evaluation.codes import encode_rows
from latentfit.evaluation.ladder import climb
from latentfit.evaluation.likelihood import log_likelihood
from latentfit.evaluation.proposal import fit_proposal
from latentfit.evaluation.terms import elbo_terms
from latentfit.registry import registry
from latentfit.training.rng import isolated_rng

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here"),
    # so few steps and samples are not reliable, and say so
    pytest.mark.filterwarnings("ignore::latentfit.errors.ReliabilityWarning"),
]

CUDA = torch.device("cuda", 0)
JOINT = [name for name, method in methods.METHODS.items() if method.joint]
POST_HOC = [name for name, method in methods.METHODS.items() if method.post_hoc]


def rows(n=400, seed=0):
    """Binary rows (n, 36) of two kinds."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.randint(2, (n, 1), generator=generator)
    patterns = torch.rand(2, 36, generator=torch.Generator().manual_seed(1))
    return torch.bernoulli(torch.where(kind == 0, patterns[:1], patterns[1:]).expand(n, 36), generator=generator)


def trained(method, *, device="cuda", max_steps=30, **settings):
    recipe = methods.get(method)
    with isolated_rng(0):
        vae = methods.build(recipe, data_shape=(36,), latent_dim=4, likelihood="bernoulli")
    objective = recipe.objective(max_steps)
    lf.fit(vae, rows(), objective=objective, max_steps=max_steps, batch_size=64, device=device, **settings)
    return vae


def on_card(module):
    return all(t.device == CUDA for t in (*module.parameters(), *module.buffers()))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("method", JOINT)
def test_trains_and_is_scored(method, precision):
    vae = trained(method, precision=precision)
    assert on_card(vae)
    terms = elbo_terms(vae, rows(60, seed=2))
    assert np.isfinite(terms.elbo.value)
    images = vae.sample(5, generator=torch.Generator().manual_seed(0))
    assert images.device == CUDA
    if vae.prior.density in ("exact", "unbiased"):
        scored = log_likelihood(vae, rows(60, seed=2), n_importance_samples=50, refinement_steps=5)
        assert np.isfinite(scored.values).all()
        assert scored.values.mean() > terms.elbo.value - 1


def test_the_same_number_as_on_the_cpu():
    """The ELBO and log p(x) of one model, by noise of their own: within 5 standard errors of the difference."""
    vae = trained("standard", device="cpu", max_steps=200)
    held_out = rows(300, seed=2)
    on_cpu = log_likelihood(vae, held_out, n_importance_samples=300)
    on_gpu = log_likelihood(vae.to(CUDA), held_out, n_importance_samples=300)
    difference = on_cpu.values - on_gpu.values
    assert abs(difference.mean()) < 5 * difference.std() / len(difference) ** 0.5 + 1e-3


@pytest.mark.parametrize("name", POST_HOC)
def test_prior_is_fitted_on_the_card(name):
    generator = torch.Generator(device=CUDA).manual_seed(0)
    mean = torch.randn(300, 3, device=CUDA, generator=generator)
    prior = lf.priors.create(name, latent_dim=3).to(CUDA)
    prior.fit(mean, std=torch.full_like(mean, 0.3), max_steps=20)
    assert on_card(prior), name
    z = prior.sample((4, 5), generator=generator)
    assert z.device == CUDA
    assert prior.sample(3, generator=torch.Generator().manual_seed(0)).device == CUDA
    if prior.density != "none":
        assert torch.isfinite(prior.log_prob(z)).all()


def test_ladder_and_proposal_with_a_context():
    with isolated_rng(0):
        vae = methods.build("standard", data_shape=(36,), latent_dim=4, likelihood="bernoulli", context_features=2)
    x, context = rows(), torch.randn(400, 2, generator=torch.Generator().manual_seed(3))
    lf.fit(vae, Batch(x, context=context), max_steps=30, device="cuda")
    codes = encode_rows(vae, Batch(x, context=context))
    ladder = climb(codes[:200], codes[200:300], codes[300:], vae.prior, max_steps=20)
    assert np.isfinite(ladder.prior_gap.value)
    proposal = fit_proposal(vae, Batch(x[:100], context=context[:100]))
    scored = log_likelihood(vae, Batch(x[:50], context=context[:50]), n_importance_samples=50, proposal=proposal)
    assert np.isfinite(scored.values).all()


@pytest.mark.parametrize("depth", ["quick", "full"])
def test_diagnosed_and_retrofitted(depth):
    vae = trained("standard", max_steps=200)
    held_out, labels = rows(300, seed=2), np.arange(300) % 3
    dx = lf.diagnose(vae, held_out, X_train=rows(), labels=labels, groups=np.arange(300) // 10, depth=depth)
    assert np.isfinite(dx.prior_gap.value)
    fix = lf.retrofit(vae, rows(), X_test=held_out)
    assert on_card(fix.model)
    assert np.isfinite(fix.gain.value)


def test_annealed_importance_sampling():
    vae = trained("mixture")
    scored = ais_log_likelihood(vae, rows(20, seed=2), n_temperatures=20, n_chains=4)
    assert np.isfinite(scored.values).all()


def test_adapted():
    class Tutorial(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.into, self.out = torch.nn.Linear(36, 8), torch.nn.Linear(4, 36)

        def encode(self, x):
            return self.into(x).chunk(2, -1)

        def decode(self, z):
            return torch.sigmoid(self.out(z))

    torch.manual_seed(0)
    m = lf.adapt(Tutorial().to(CUDA), example=rows(32), likelihood="bernoulli")
    dx = lf.diagnose(m, rows(200, seed=2), X_train=rows(), depth="quick")
    assert np.isfinite(dx.prior_gap.value)


def test_saved_there_and_loaded_here(tmp_path):
    vae = trained("realnvp")
    saving.save_component(vae, tmp_path / "vae")
    back = saving.load_component(tmp_path / "vae")
    for key, value in vae.state_dict().items():
        assert torch.equal(value.cpu(), back.state_dict()[key]), key


def test_interrupted_and_resumed_to_the_bit(tmp_path):
    def stop(event):
        if event.step >= 20:
            raise KeyboardInterrupt

    whole = trained("realnvp", max_steps=40)
    with pytest.raises(KeyboardInterrupt):
        trained("realnvp", max_steps=40, run_dir=tmp_path / "run", progress=stop)
    resumed = trained("realnvp", max_steps=40, run_dir=tmp_path / "run")
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def test_compared(tmp_path):
    res = lf.compare(
        rows(600).numpy(),
        methods="standard,mixture",
        likelihood="bernoulli",
        n_seeds=1,
        max_steps=100,
        device="cuda",
        backend="serial",
        out=tmp_path / "run",
    )
    assert len(res.leaderboard) >= 2


def test_estimator():
    vae = lf.VAE(latent_dim=3, method="realnvp", likelihood="bernoulli", max_steps=30, device="cuda", random_state=0)
    X = rows().numpy()
    vae.fit(X)
    assert vae.transform(X).shape == (400, 3)
    assert vae.sample(4).shape == (4, 36)
    assert np.isfinite(vae.score_samples(X[:20])).all()


def test_registry_is_what_was_tested():
    assert set(POST_HOC) <= set(registry.names("prior"))
