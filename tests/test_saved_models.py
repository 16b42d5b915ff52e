"""Laws of saved models: what comes back is what went in, to the bit, and nothing else is read."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.exceptions import NotFittedError

import latentfit as lf
from latentfit.errors import InputError, SavedFileError
from latentfit.model import Prior

METHODS = ["standard", "learned_gaussian", "mixture", "realnvp"]
#: five steps are no training, so importance weights may well be bad; they must be the same bad ones
pytestmark = pytest.mark.filterwarnings("ignore::latentfit.errors.LatentfitWarning")


def small(**settings) -> lf.VAE:
    defaults = {"latent_dim": 2, "max_steps": 5, "n_importance_samples": 30, "network_args": {"hidden": [8]}}
    return lf.VAE(**{**defaults, **settings})


def data(kind: str, shape: tuple[int, ...] = (3,)) -> np.ndarray:
    rng = np.random.default_rng(0)
    return {
        "real": rng.normal(size=(40, *shape)),
        "integer": rng.integers(-9, 9, (40, *shape)),
        "binary": rng.integers(0, 2, (40, *shape)),
        "grey": rng.integers(0, 256, (40, *shape), dtype=np.uint8),
        "counts": rng.poisson(20, (40, *shape)),
        "bounded": rng.binomial(5, 0.5, (40, *shape)),
        "unit": rng.uniform(size=(40, *shape)),
    }[kind]


def assert_same(a: lf.VAE, b: lf.VAE, x) -> None:
    for numbers in ("transform", "score_samples", "elbo", "reconstruct"):
        np.testing.assert_array_equal(getattr(a, numbers)(x), getattr(b, numbers)(x), err_msg=numbers)
    np.testing.assert_array_equal(a.sample(20), b.sample(20))
    np.testing.assert_array_equal(a.sample(20, random_state=5), b.sample(20, random_state=5))
    np.testing.assert_array_equal(a.sample(5, observation_noise=False), b.sample(5, observation_noise=False))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_comes_back_to_the_bit(method, tmp_path) -> None:
    x = data("real")
    vae = small(method=method).fit(x)
    back = lf.load(lf.save(vae, tmp_path / "vae"))
    assert_same(vae, back, x)
    assert isinstance(back, lf.VAE)
    assert back.get_params() == vae.get_params()
    for name in ("likelihood_", "notes_", "n_features_in_", "n_steps_", "seed_", "history_"):
        assert getattr(back, name) == getattr(vae, name), name
    assert not hasattr(back, "feature_names_in_")


@pytest.mark.parametrize("kind", ["integer", "binary", "grey", "counts", "bounded", "unit"])
@pytest.mark.parametrize("shape", [(3,), (4, 4), (4, 4, 3)])
def test_every_kind_of_data_comes_back_to_the_bit(kind, shape, tmp_path) -> None:
    x = data(kind, shape)
    vae = small().fit(x)
    assert_same(vae, lf.load(lf.save(vae, tmp_path / "vae")), x)


@pytest.mark.parametrize("likelihood", ["bernoulli", "continuous_bernoulli", "normal"])
def test_noise_of_grey_bytes_comes_back_to_the_bit(likelihood, tmp_path) -> None:
    x = data("grey", (8, 8))
    vae = small(likelihood=likelihood).fit(x)
    assert_same(vae, lf.load(lf.save(vae, tmp_path / "vae")), x)


def test_names_constants_and_settings_come_back(tmp_path) -> None:
    frame = pd.DataFrame(data("real"), columns=list("abc")).assign(d=4.0)
    vae = small(
        latent_dim=np.int64(2),
        likelihood={"name": "normal", "args": {"scale": "learned"}},
        random_state=np.random.RandomState(3),
    ).fit(frame)
    back = lf.load(lf.save(vae, tmp_path / "vae"))
    np.testing.assert_array_equal(back.feature_names_in_, vae.feature_names_in_)
    np.testing.assert_array_equal(back.transform(frame), vae.transform(frame))
    np.testing.assert_array_equal(back.reconstruct(frame)[:, 3], 4.0)
    assert back.random_state == vae.seed_
    assert back.latent_dim == 2
    assert back.likelihood == vae.likelihood
    # a loaded estimator is an estimator: it can be fitted again, and saved again
    assert_same(back, lf.load(lf.save(back, tmp_path / "again")), frame)
    assert back.fit(frame).transform(frame).shape == (40, 2)


@pytest.mark.parametrize("name", METHODS)
def test_a_prior_comes_back_to_the_bit(name, tmp_path) -> None:
    prior = lf.priors.create(name, latent_dim=2)
    if name != "standard":
        mean = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
        prior.fit(mean, std=0.3 * torch.ones_like(mean), max_steps=5)
    folder = lf.save(prior, tmp_path / "prior")
    z = torch.randn(20, 2, generator=torch.Generator().manual_seed(1))
    for back in (lf.load(folder), lf.priors.load(folder)):
        assert isinstance(back, Prior)
        assert torch.equal(back.log_prob(z), prior.eval().log_prob(z))
        draws = [p.sample(9, generator=torch.Generator().manual_seed(2)) for p in (back, prior)]
        assert torch.equal(*draws)


def test_a_module_comes_back_as_a_module(tmp_path) -> None:
    x = data("real")
    module = small().fit(x).module_
    back = lf.load(lf.save(module, tmp_path / "module"))
    assert isinstance(back, lf.VAEModule)
    rows = torch.as_tensor(x, dtype=torch.float32)
    assert torch.equal(back.reconstruct(rows), module.reconstruct(rows))
    assert back.config() == module.config()


def test_own_modules_are_handed_over_when_loading(tmp_path) -> None:
    def parts() -> dict[str, torch.nn.Module]:
        return {"encoder": torch.nn.Linear(3, 4), "decoder": torch.nn.Linear(2, 3)}

    module = lf.VAEModule(**parts(), latent_dim=2).eval()
    folder = lf.save(module, tmp_path / "module")
    with pytest.raises(InputError, match=r"load\(\.\.\., encoder=your_module\)"):
        lf.load(folder)
    back = lf.load(folder, **parts())
    x = torch.ones(5, 3)
    assert torch.equal(back.reconstruct(x), module.reconstruct(x))
    with pytest.raises(SavedFileError, match="does not match"):
        lf.load(folder, **{**parts(), "decoder": torch.nn.Linear(2, 5)})


def test_the_folder_holds_three_files_and_says_what_it_is(tmp_path) -> None:
    folder = lf.save(small().fit(data("real")), tmp_path / "shoes")
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert 'lf.load("shoes")' in card
    assert "normal" in card
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["format_version"] == 1
    assert config["estimator"]["params"]["max_steps"] == 5
    assert str(tmp_path) not in json.dumps(config) + card


def test_overwriting_is_asked_for(tmp_path) -> None:
    first, second = (small(random_state=seed).fit(data("real")) for seed in (0, 1))
    folder = lf.save(first, tmp_path / "vae")
    with pytest.raises(InputError, match="overwrite=True"):
        lf.save(second, folder)
    np.testing.assert_array_equal(lf.load(folder).sample(3), first.sample(3))
    lf.save(second, folder, overwrite=True)
    np.testing.assert_array_equal(lf.load(folder).sample(3), second.sample(3))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x", encoding="utf-8")
    with pytest.raises(InputError, match="did not save"):
        lf.save(first, tmp_path / "mine", overwrite=True)


def edit(folder: Path, change) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    change(config)
    path.write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model.safetensors").write_bytes(b"x"), "damaged"),
        (lambda f: (f / "model.safetensors").unlink(), "missing"),
        (lambda f: (f / "config.json").write_text("{", encoding="utf-8"), "damaged"),
        (lambda f: (f / "config.json").unlink(), "was not saved by Latentfit"),
        (lambda f: edit(f, lambda c: c.update(format_version=99)), "format version 99"),
        (lambda f: edit(f, lambda c: c["estimator"].pop("units")), "damaged .*'estimator'.*units"),
        (lambda f: edit(f, lambda c: c.update(estimator=[])), "damaged .*'estimator'"),
        (lambda f: edit(f, lambda c: c["estimator"]["params"].update(colour=1)), "damaged .*colour"),
        (lambda f: edit(f, lambda c: c["estimator"]["units"].update(data_shape=3)), "damaged .*'estimator'"),
        (
            lambda f: edit(f, lambda c: c["estimator"]["proposal"].update(tensors="AAAA")),
            "damaged .*'estimator'",
        ),
        (lambda f: edit(f, lambda c: c["estimator"]["proposal"].update(full=False)), "damaged .*'estimator'"),
    ],
)
def test_a_damaged_folder_is_one_line(damage, message, tmp_path) -> None:
    folder = lf.save(small().fit(data("real")), tmp_path / "vae")
    damage(folder)
    with pytest.raises(SavedFileError, match=message) as caught:
        lf.load(folder)
    assert "\n" not in str(caught.value)


def test_foreign_folders_and_objects_are_refused(tmp_path) -> None:
    with pytest.raises(SavedFileError, match="not a folder"):
        lf.load(tmp_path / "nothing")
    with pytest.raises(SavedFileError, match="was not saved by Latentfit"):
        lf.load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    with pytest.raises(SavedFileError, match="was not saved by Latentfit"):
        lf.load(tmp_path)
    for thing in (torch.nn.Linear(1, 1), {"a": 1}, lf.ELBO()):
        with pytest.raises(InputError, match="expected a fitted VAE, a VAEModule or a prior"):
            lf.save(thing, tmp_path / "thing")
    with pytest.raises(NotFittedError):
        lf.save(small(), tmp_path / "unfitted")
    assert not (tmp_path / "thing").exists()
    module = lf.save(small().fit(data("real")), tmp_path / "vae")
    with pytest.raises(InputError, match="holds a model, not a prior"):
        lf.priors.load(module)


def test_nothing_unpickles(tmp_path, monkeypatch) -> None:
    folder = lf.save(small().fit(data("real")), tmp_path / "vae")

    def refuse(*_args, **_kwargs):
        raise AssertionError("a pickle was read")

    for home, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(home, name, refuse)
    assert lf.load(folder).transform(data("real")).shape == (40, 2)


def test_a_prior_loads_without_the_rest(tmp_path) -> None:
    folder = lf.save(lf.priors.create("mixture", latent_dim=2), tmp_path / "prior")
    code = (
        "import sys, latentfit as lf\n"
        f"lf.priors.load({str(folder)!r}).sample(3)\n"
        "heavy = {'sklearn', 'scipy', 'pandas', 'matplotlib', 'zuko', 'joblib', 'rich'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_double_prior_stays_double(tmp_path):
    prior = lf.priors.create("mixture", latent_dim=2, n_components=3).double()
    lf.save(prior, tmp_path / "prior")
    again, z = lf.load(tmp_path / "prior"), torch.randn(5, 2, dtype=torch.float64)
    assert torch.equal(again.log_prob(z), prior.log_prob(z))


def test_grey_rows_of_a_model_that_binarises_are_refused_once_scaled():
    """They would be divided by 255 again, and nearly all pixels be 0."""
    x = np.random.default_rng(0).integers(0, 256, (60, 12), dtype=np.uint8)
    vae = lf.VAE(latent_dim=2, likelihood="bernoulli", max_steps=5).fit(x)
    with pytest.raises(InputError, match="as they were before they were scaled"):
        vae.transform((x / 255).astype(np.float32))
