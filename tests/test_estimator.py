"""Laws of the estimator: scikit-learn's own checks, and the data's units on the way in and out."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import latentfit as lf
from latentfit.data import LinearGaussian
from latentfit.errors import DataWarning, InputError

SMALL = {"latent_dim": 1, "max_steps": 5, "n_importance_samples": 30, "network_args": {"hidden": [8]}}

#: checks of scikit-learn that fail, and why that is right
PLACE = "importance samples of log p(x) belong to a row's place in the call, so that models can be paired"
EXPECTED_FAILURES = {
    "check_methods_subset_invariance": PLACE,
    "check_methods_sample_order_invariance": PLACE,
}
#: short trainings and few draws: importance weights may well be bad here
pytestmark = pytest.mark.filterwarnings("ignore::latentfit.errors.ReliabilityWarning")


@pytest.mark.filterwarnings("ignore::latentfit.errors.LatentfitWarning")
@parametrize_with_checks([lf.VAE(**SMALL)], expected_failed_checks=lambda estimator: EXPECTED_FAILURES)
def test_scikit_learn(estimator, check) -> None:
    check(estimator)


@pytest.fixture(scope="module")
def X() -> np.ndarray:
    return LinearGaussian(data_dim=4, latent_dim=2).sample(300)[0].numpy()


@pytest.fixture(scope="module")
def vae(X: np.ndarray) -> lf.VAE:
    return lf.VAE(latent_dim=2, max_steps=250, network_args={"hidden": [32]}).fit(X)


def small(**settings) -> lf.VAE:
    return lf.VAE(**{**SMALL, **settings})


def test_log_p_of_the_linear_gaussian_model_is_found() -> None:
    truth = LinearGaussian(data_dim=4, latent_dim=2)
    x, _ = truth.sample(1_000)
    held_out = truth.sample(300, random_state=1)[0]
    vae = lf.VAE(latent_dim=2, max_steps=250, network_args={"hidden": [32]}).fit(x.numpy())
    scores, exact = vae.score_samples(held_out), truth.log_prob(held_out).numpy()
    # a model is below the truth on fresh rows but for the noise of their mean
    loss = exact - scores
    assert -2 * loss.std() / np.sqrt(len(loss)) < loss.mean() < 0.15
    assert vae.score(held_out) == pytest.approx(scores.mean())
    assert vae.elbo(held_out).mean() <= scores.mean()


def test_numbers_are_repeatable_and_leave_the_callers_state_alone(vae, X) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    again = lf.VAE(latent_dim=2, max_steps=250, network_args={"hidden": [32]}).fit(X)
    for numbers in ("transform", "score_samples", "elbo", "reconstruct"):
        values = getattr(vae, numbers)(X)
        np.testing.assert_array_equal(values, getattr(vae, numbers)(X), err_msg=numbers)
        np.testing.assert_array_equal(values, getattr(again, numbers)(X), err_msg=numbers)
    np.testing.assert_array_equal(vae.sample(9), again.sample(9))
    np.testing.assert_array_equal(vae.sample(9, random_state=3), again.sample(9, random_state=3))
    assert not np.array_equal(vae.sample(9), vae.sample(9, random_state=3))
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])


def test_rows_come_out_the_same_without_the_rest_and_in_another_order(vae, X) -> None:
    np.testing.assert_allclose(vae.score_samples(X[:10]), vae.score_samples(X)[:10], rtol=1e-4)
    order = np.random.default_rng(0).permutation(len(X))
    for numbers in ("transform", "reconstruct"):
        whole = getattr(vae, numbers)(X)
        np.testing.assert_allclose(getattr(vae, numbers)(X[order]), whole[order], atol=1e-5)
        np.testing.assert_allclose(getattr(vae, numbers)(X[7:8]), whole[7:8], atol=1e-5)


def test_random_state_may_be_a_generator_or_none(X) -> None:
    state = np.random.RandomState(0)
    first, second = (small(random_state=state).fit(X).seed_ for _ in range(2))
    assert first != second
    assert first == small(random_state=np.random.RandomState(0)).fit(X).seed_
    drawn = small(random_state=None).fit(X)
    assert not np.array_equal(drawn.sample(5), drawn.sample(5))
    with pytest.raises(ValueError, match=r"random_state must be an int of at least 0, .* got -1"):
        small(random_state=-1).fit(X)


@pytest.mark.parametrize("n", [2, 5, 9, 20])
def test_few_rows_are_enough(n, X) -> None:
    fitted = small().fit(X[:n])
    assert np.isfinite(fitted.score_samples(X)).all()
    assert fitted.transform(X[:1]).shape == (1, 1)


@pytest.mark.parametrize("shape", [(4,), (6, 5), (6, 5, 3), (3, 6, 5)])
@pytest.mark.parametrize("kind", ["real", "binary", "grey", "counts"])
def test_every_shape_and_kind_of_data_comes_back_as_it_went_in(shape, kind) -> None:
    rng = np.random.default_rng(0)
    x = {
        "real": rng.normal(size=(40, *shape)),
        "binary": rng.integers(0, 2, (40, *shape)).astype(bool),
        "grey": rng.integers(0, 256, (40, *shape), dtype=np.uint8),
        "counts": rng.poisson(20, (40, *shape)),
    }[kind]
    fitted = small().fit(x)
    assert fitted.n_features_in_ == np.prod(shape)
    assert fitted.transform(x).shape == (40, 1)
    for rows in (fitted.inverse_transform(fitted.transform(x)), fitted.reconstruct(x), fitted.sample(40)):
        assert rows.shape == x.shape
    whole = fitted.sample(40)
    assert kind == "real" or np.array_equal(whole, np.rint(whole))
    assert fitted.elbo(x).shape == (40,)


def test_dequantised_integers_come_back_as_integers_and_on_their_scale() -> None:
    x = np.random.default_rng(0).integers(-30, 30, (200, 3))
    with pytest.warns(DataWarning, match="dequantised"):
        fitted = small(max_steps=60).fit(x)
    samples = fitted.sample(200)
    np.testing.assert_array_equal(samples, np.floor(samples))
    # the decoder's mean is of x + U(0, 1); half a unit is taken back
    assert abs(fitted.reconstruct(x).mean() - x.mean()) < 3


def test_grey_bytes_under_a_bernoulli_are_binarised() -> None:
    x = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    with pytest.warns(DataWarning, match="binarised"):
        fitted = small(likelihood="bernoulli").fit(x)
    assert fitted.likelihood_["name"] == "bernoulli"
    assert set(np.unique(fitted.sample(20))) == {0.0, 255.0}
    assert 0 < fitted.sample(20, observation_noise=False).min() < 255
    order = np.random.default_rng(1).permutation(40)
    np.testing.assert_allclose(fitted.transform(x[order]), fitted.transform(x)[order], rtol=1e-4, atol=1e-6)


def test_constant_columns_are_left_out_and_put_back(X) -> None:
    wide = np.insert(X, [1, 3], [7.0, -2.0], axis=1)
    with pytest.warns(DataWarning, match="2 constant columns are left out of the model: 1, 4"):
        fitted = small().fit(wide)
    assert fitted.n_features_in_ == 6
    for rows in (fitted.sample(5), fitted.reconstruct(wide)):
        np.testing.assert_array_equal(rows[:, [1, 4]], np.tile([7.0, -2.0], (len(rows), 1)))
    plain = small().fit(X)
    np.testing.assert_array_equal(fitted.elbo(wide), plain.elbo(X))
    wide[:3, 4] = 0.0  # what no score can know of
    with pytest.warns(DataWarning, match=r"Column 4 was -2 in all training rows.*3 of these 300 rows"):
        np.testing.assert_array_equal(fitted.elbo(wide), plain.elbo(X))
    with pytest.raises(InputError, match="All 2 columns are constant"):
        small().fit(np.ones((10, 2)))


@pytest.mark.parametrize("exponent", [-15, 12])
def test_log_densities_do_not_hang_on_the_units(X, exponent: int) -> None:
    unit = 10.0**exponent
    other = small().fit(X.astype(np.float64) * unit).elbo(X.astype(np.float64) * unit)
    np.testing.assert_allclose(other + X.shape[1] * math.log(unit), small().fit(X).elbo(X), atol=0.02)


def test_a_column_that_float32_blurs_or_that_comes_twice_is_told(X) -> None:
    table = pd.DataFrame(X, columns=list("abcd")).assign(t=1.7e9 + np.arange(len(X)))
    with pytest.warns(DataWarning, match="X: column t: values so close to each other"):
        small().fit(table)
    with pytest.raises(InputError, match="X has the column 'a' more than once"):
        small().fit(pd.concat([table, table], axis=1))


def test_what_holds_the_rows_does_not_matter(X) -> None:
    expected = small().fit(X).transform(X)
    tensor = torch.from_numpy(X)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(tensor), batch_size=64)
    for rows in (X.tolist(), tensor, loader, pd.DataFrame(X), lf.Batch(tensor), np.asfortranarray(X)):
        np.testing.assert_array_equal(small().fit(rows).transform(rows), expected)


def test_column_names_are_kept_and_checked(X) -> None:
    frame = pd.DataFrame(X, columns=list("abcd"))
    fitted = small(latent_dim=2).fit(frame).set_output(transform="pandas")
    assert list(fitted.feature_names_in_) == list("abcd")
    assert list(fitted.transform(frame).columns) == ["vae0", "vae1"]
    np.testing.assert_array_equal(fitted.reconstruct(frame), fitted.inverse_transform(fitted.transform(frame)))
    with pytest.raises(ValueError, match="feature names should match"):
        fitted.transform(frame[list("dcba")])
    images = np.random.default_rng(0).normal(size=(20, 2, 2))
    assert not hasattr(fitted.fit(images), "feature_names_in_")


def test_it_works_inside_scikit_learn(X) -> None:
    search = GridSearchCV(
        make_pipeline(StandardScaler(), small(n_importance_samples=50)),
        {"vae__method": ["standard", "learned_gaussian"], "vae__latent_dim": np.array([1, 2])},
        cv=2,
        error_score="raise",
    ).fit(X)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.transform(X).shape == (300, search.best_params_["vae__latent_dim"])
    copy = clone(search.best_estimator_[-1])
    assert not hasattr(copy, "module_")
    assert copy.get_params() == search.best_estimator_[-1].get_params()


@pytest.mark.parametrize("name", ["pickle", "cloudpickle", "joblib"])
def test_it_pickles(name, vae, X, tmp_path) -> None:
    if name == "joblib":
        import joblib

        joblib.dump(vae, tmp_path / "vae")
        copy = joblib.load(tmp_path / "vae")
    else:
        module = pytest.importorskip(name)
        copy = pickle.loads(module.dumps(vae))
    np.testing.assert_array_equal(copy.score_samples(X), vae.score_samples(X))
    np.testing.assert_array_equal(copy.sample(5), vae.sample(5))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"latent_dim": 0}, "latent_dim must be a whole number of at least 1 or 'auto', got 0"),
        ({"latent_dim": "big"}, "latent_dim must be"),
        ({"method": "gmm"}, "Latentfit calls it 'mixture'"),
        ({"likelihood": "bernoulli"}, "needs 0 or 1"),
        ({"likelihood": "bernouli"}, "Did you mean 'bernoulli'"),
        ({"network": "cnn"}, "Unknown network 'cnn'"),
        ({"network_args": {"width": 3}}, "takes no argument 'width'"),
        ({"max_steps": 0}, "max_steps must be a whole number of at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be a whole number"),
        ({"validation_fraction": 1.0}, r"validation_fraction must be in \[0, 1\), got 1.0"),
        ({"precision": "fp8"}, "precision must be one of"),
        ({"device": "tpu9"}, "device must be"),
    ],
)
def test_settings_that_cannot_be_used_are_named(settings, message, X) -> None:
    with pytest.raises(InputError, match=message):
        small(**settings).fit(X)


def test_rows_that_cannot_be_used_are_named(vae, X) -> None:
    with pytest.raises(InputError, match=r"Z has shape \(3, 5\); expected \(n, 2\)"):
        vae.inverse_transform(np.zeros((3, 5)))
    with pytest.raises(InputError, match=r"fitted on rows of shape \(4,\), got \(2, 2\)"):
        vae.transform(X.reshape(-1, 2, 2))
    with pytest.raises(ValueError, match="X has 3 features, but VAE is expecting 4"):
        vae.transform(X[:, :3])
    with pytest.raises(InputError, match="n must be a whole number of at least 1, got 0"):
        vae.sample(0)
    with pytest.raises(InputError, match="bare rows"):
        small().fit(lf.Batch(torch.from_numpy(X), weight=torch.ones(300)))
    counts = np.random.default_rng(0).binomial(5, 0.5, (60, 4))
    fitted = small().fit(counts)
    assert fitted.likelihood_["name"] == "binomial"
    with pytest.raises(InputError, match="binomial"):
        fitted.score_samples(counts + 9)


def test_progress_is_shown_when_asked(X, capsys) -> None:
    small().fit(X)
    quiet = capsys.readouterr()
    small(verbose=True).fit(X)
    shown = capsys.readouterr()
    assert quiet.out == quiet.err == shown.out == ""
    assert "5/5" in shown.err
