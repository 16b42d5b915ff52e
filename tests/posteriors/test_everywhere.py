"""A flow posterior goes wherever a Gaussian one goes: estimator, files, diagnosis, retrofit, comparison."""

from __future__ import annotations

import numpy as np
import pytest

import latentfit as lf

METHODS = ("planar", "sylvester", "iaf", "realnvp_posterior")
#: numbers of so short a run are not to be trusted, and it says so
pytestmark = pytest.mark.filterwarnings("ignore::latentfit.errors.ReliabilityWarning")


@pytest.fixture(scope="module")
def X():
    """A ring in four columns: the true posteriors are no Gaussians."""
    rng = np.random.default_rng(0)
    angle = rng.uniform(0, 2 * np.pi, 240)
    ring = np.stack((np.cos(angle), np.sin(angle)), 1) @ rng.normal(size=(2, 4))
    return (ring + 0.1 * rng.normal(size=(240, 4))).astype(np.float32)


@pytest.fixture(scope="module", params=METHODS)
def vae(request, X):
    return lf.VAE(latent_dim=2, method=request.param, max_steps=60).fit(X)


def test_the_estimator(vae, X, tmp_path):
    codes = vae.transform(X)
    assert codes.shape == (240, 2)
    scores = vae.score_samples(X[:20])
    assert np.isfinite(scores).all()
    lf.save(vae, tmp_path / "vae")
    again = lf.load(tmp_path / "vae")
    assert again.module_.posterior.name == vae.method
    np.testing.assert_array_equal(again.transform(X), codes)
    np.testing.assert_array_equal(again.score_samples(X[:20]), scores)


def test_retrofit(vae, X):
    fix = lf.retrofit(vae.module_, X[120:], X_test=X[:60], priors=("learned_gaussian",))
    assert fix.weights_unchanged
    assert np.isfinite(fix.gain.value)


@pytest.mark.slow
def test_diagnosis(vae, X):
    dx = lf.diagnose(vae.module_, X[:120], X_train=X[120:], depth="quick")
    assert np.isfinite(dx.prior_gap.value)
    assert np.isfinite(dx.inference_gap.value)


@pytest.mark.slow
def test_comparison(X, tmp_path):
    settings = {"n_seeds": 1, "max_steps": 40, "n_importance_samples": 30, "backend": "serial"}
    found = lf.compare(X, methods="iaf,realnvp_posterior", out=tmp_path, **settings)
    assert {"standard", "iaf", "realnvp_posterior"} <= {row.key for row in found.rows}
