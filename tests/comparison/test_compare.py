"""A comparison from end to end on a small table: the same again resumes, another one is refused, nothing is lost."""

import dataclasses
import json
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone

import latentfit as lf
from latentfit.comparison import Comparison
from latentfit.comparison.found import Found
from latentfit.comparison.jobs import load_data
from latentfit.comparison.plan import Plan
from latentfit.errors import InputError, ReliabilityWarning
from latentfit.evaluation.codes import encode_rows
from latentfit.report.outputs import save_best

SMALL = {"methods": "standard,mixture", "n_seeds": 2, "max_steps": 60, "latent_dim": 2, "n_importance_samples": 40}


@pytest.fixture(scope="module")
def table():
    """Two clusters in six columns: the codes are not Gaussian."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(2, 6)) * 3
    return (centres[rng.integers(0, 2, 300)] + rng.normal(size=(300, 6))).round(2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def comparison(table, folder):
    return lf.compare(table, out=folder, backend="serial", **SMALL)


def without_times(comparison: Comparison):
    return comparison.leaderboard.drop(columns=["fit_seconds", "sample_ms"])


def test_every_method_and_rung_has_a_row(comparison):
    keys = {row.key for row in comparison.rows}
    assert keys == {"standard", "mixture", "learned_gaussian@standard", "mixture@standard", "realnvp@standard"}
    assert comparison.null.gain is None
    gains = [row.gain.value for row in comparison.rows if row.gain is not None]
    assert gains == sorted(gains, reverse=True)


def test_gains_are_paired_differences_of_log_px(comparison):
    null = comparison.null.log_px.value
    for row in comparison.rows:
        if row.gain is not None:
            assert row.gain.value == pytest.approx(row.log_px.value - null, abs=1e-6)


def test_the_folder_holds_what_was_promised(comparison, folder):
    for name in ("leaderboard.csv", "report.html", "report.png", "comparison.json", "best/model.safetensors"):
        assert (folder / name).exists(), name
    assert comparison.best.sample(3).shape == (3, 6)


@pytest.mark.parametrize("key", ["standard", "mixture", "mixture@standard", "realnvp@standard"])
def test_a_recommended_model_loads_as_it_was_scored(comparison, table, folder, key):
    chosen = dataclasses.replace(comparison, recommendation=dataclasses.replace(comparison.recommendation, key=key))
    save_best(chosen, folder)
    plan = Plan.from_json(json.loads((folder / "plan.json").read_text())["plan"])
    found, best = Found(folder, plan), lf.load(folder / "best")
    scored, loaded = found.model(key), best.module_
    z = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.prior.log_prob(z), scored.prior.log_prob(z))
    assert torch.equal(loaded.decode_mean(z), scored.decode_mean(z))
    rows = found.rows["selection"]
    # the proposal is another one, which changes the noise and not the number
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ReliabilityWarning)
        values = best.score_samples(table[rows])
    assert values.mean() == pytest.approx(found.log_px(key, "selection")[0].mean(), abs=0.1)
    save_best(comparison, folder)


@pytest.fixture(scope="module")
def bayesian(tmp_path_factory):
    """Named columns of whole numbers under a density, one of them constant, and a row with uncertain weights."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.integers(0, 9, (120, 4)), columns=list("abcd")).assign(b=7)
    options = {"methods": "standard,mc_dropout", "likelihood": "normal", "n_seeds": 1, "max_steps": 20}
    out = tmp_path_factory.mktemp("bayesian") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("latentfit.methods.LADDER", ("learned_gaussian",))
        result = lf.compare(frame, out=out, backend="serial", latent_dim=2, n_importance_samples=20, **options)
    return frame, result, out


@pytest.mark.filterwarnings("ignore::latentfit.errors.LatentfitWarning")  # twenty steps are no training
@pytest.mark.parametrize("key", ["standard", "mc_dropout", "learned_gaussian@standard"])
def test_a_recommended_model_speaks_the_users_units(bayesian, key):
    frame, result, out = bayesian
    save_best(dataclasses.replace(result, recommendation=dataclasses.replace(result.recommendation, key=key)), out)
    best = result.best
    assert isinstance(best, lf.VAE)
    assert (best.module_.n_draws > 1) == (key == "mc_dropout")
    units = load_data(str(out))[0].units
    codes = encode_rows(best.module_, units.to_model(frame.to_numpy())).mean
    np.testing.assert_array_equal(best.transform(frame), codes.numpy())
    drawn = best.sample(50)
    assert drawn.shape == (50, 4)
    assert (drawn[:, 1] == 7).all()
    assert (drawn == np.round(drawn)).all()
    for means in (best.inverse_transform(best.transform(frame)), best.reconstruct(frame)):
        assert means.shape == frame.shape
        assert (means[:, 1] == 7).all()
        assert np.abs(means[:, 0].mean() - frame["a"].mean()) < 2
    assert list(best.feature_names_in_) == list("abcd")
    assert np.isfinite(best.score_samples(frame[:10])).all()
    again = lf.load(lf.save(best, out.parent / key))
    np.testing.assert_array_equal(again.score_samples(frame[:10]), best.score_samples(frame[:10]))
    refitted = clone(best).set_params(max_steps=2).fit(frame)
    assert refitted.likelihood_["name"] == "normal"
    assert type(refitted.module_) is type(best.module_)


def test_a_conditional_model_stays_a_module(bayesian, monkeypatch):
    _, result, out = bayesian
    real = Found.model

    def conditional(self, key, seed=0):
        vae = real(self, key, seed)
        vae.conditional = True
        return vae

    monkeypatch.setattr(Found, "model", conditional)
    save_best(result, out)
    assert isinstance(lf.load(out / "best"), lf.VAEModule)


def test_the_diagnosis_says_every_part_once(comparison):
    codes = [finding.code for finding in comparison.findings]
    assert len(codes) == len(set(codes)) == 6
    assert set(comparison.budget) == {"inference", "prior"}


def test_a_stored_comparison_reads_back(comparison, folder):
    again = Comparison.read(folder)
    assert json.loads(again.to_json()) == json.loads(comparison.to_json())
    np.testing.assert_array_equal(again.pictures.map_codes, comparison.pictures.map_codes)


def test_the_same_call_runs_nothing_twice_and_gives_the_same_table(table, folder, comparison):
    jobs = sorted(path.stat().st_mtime_ns for path in folder.glob("jobs/*/result.json"))
    again = lf.compare(table, out=folder, backend="serial", **SMALL)
    assert sorted(path.stat().st_mtime_ns for path in folder.glob("jobs/*/result.json")) == jobs
    assert without_times(again).equals(without_times(comparison))


def test_another_comparison_is_refused_and_changes_nothing(table, folder, comparison):
    before = {path: path.read_bytes() for path in folder.glob("*.json")}
    for option, value in (("likelihood", "poisson"), ("network", "gated_mlp"), ("max_steps", 61), ("random_state", 1)):
        with pytest.raises(
            InputError, match=rf"holds another comparison \(differs in: .*{option} \S+ -> {value}.*--fresh"
        ):
            lf.compare(
                np.abs(table).round() if option == "likelihood" else table,
                out=folder,
                backend="serial",
                **{**SMALL, "n_seeds": 3, option: value},
            )
    with pytest.raises(InputError, match=r"differs in: data, which rows train and test"):
        lf.compare(table[:-1], out=folder, backend="serial", **SMALL)
    assert {path: path.read_bytes() for path in folder.glob("*.json")} == before


def test_other_methods_seeds_and_goals_keep_the_finished_jobs(table, tmp_path, folder, comparison, monkeypatch):
    out = shutil.copytree(folder, tmp_path / "run")
    held = {path.parent.name: path.stat().st_mtime_ns for path in out.glob("jobs/*/result.json")}

    def call(**changed):
        return lf.compare(table, out=out, backend="serial", **{**SMALL, **changed})

    with monkeypatch.context() as patch:
        patch.setattr("latentfit.comparison.run.run_job", None)  # nothing may be computed
        fewer = call(n_seeds=1, methods="standard", goal="samples")
        assert fewer.recommendation.goal == "samples"
        assert "mixture" not in {row.key for row in fewer.rows}
        assert fewer.setting.n_seeds == 1
        for row in fewer.rows:  # nats, whatever the goal
            gain = 0.0 if row.gain is None else row.gain.value
            assert gain == pytest.approx(row.log_px.value - fewer.null.log_px.value, abs=1e-9)
            assert row.keeps_prior == (row.key == "standard")
        assert without_times(call()).equals(without_times(comparison))  # and back
    more = call(methods="mixture,annealed")
    ran = {path.parent.name: path.stat().st_mtime_ns for path in out.glob("jobs/*/result.json")}
    assert held.items() <= ran.items()
    assert len(ran) - len(held) == 2  # annealed, two seeds
    both = {row.key: row.log_px.value for row in more.rows}
    assert all(both[row.key] == row.log_px.value for row in comparison.rows)


def test_other_labels_are_another_comparison_and_groups_stay_together(table, tmp_path):
    small = {**SMALL, "n_seeds": 1, "methods": "standard"}
    groups = np.repeat(np.arange(60), 5)
    true, random = np.where(table[:, 0] > table[:, 0].mean(), "yes", "no"), np.random.default_rng(0).integers(0, 2, 300)
    first = lf.compare(table, out=tmp_path, backend="serial", labels=true, groups=groups, **small)
    with pytest.raises(InputError, match="differs in: labels"):
        lf.compare(table, out=tmp_path, backend="serial", labels=random, groups=groups, **small)
    fresh = lf.compare(table, out=tmp_path, backend="serial", labels=random, groups=groups, fresh=True, **small)
    assert first.null.knn > 0.9 > 0.7 > fresh.null.knn
    assert first.setting.label_names == ["no", "yes"]  # the figures have 0 and 1
    assert fresh.setting.label_names == ["0", "1"]
    found = Found(tmp_path, Plan.from_json(json.loads((tmp_path / "plan.json").read_text())["plan"]))
    used = [set(found.groups_of(split)) for split in ("train", "validation", "selection", "test")]
    assert sum(map(len, used)) == len(set.union(*used)) == 60
    clustered = found.log_px("standard", "selection").mean(0)
    assert first.null.log_px.std_error != pytest.approx(clustered.std(ddof=1) / len(clustered) ** 0.5)


@pytest.mark.slow
def test_processes_give_the_same_table(table, comparison, tmp_path):
    parallel = lf.compare(table, out=tmp_path, backend="loky", workers=2, **SMALL)
    assert without_times(parallel).equals(without_times(comparison))


def test_columns_constant_on_the_training_rows_are_dropped_and_named(table, tmp_path):
    wide = np.column_stack([table, np.full(len(table), 7.0)])
    found = lf.compare(wide, out=tmp_path, backend="serial", **{**SMALL, "n_seeds": 1, "methods": "standard"})
    assert found.setting.data_shape == (6,)


def test_options_are_refused_before_anything_is_written(table, tmp_path):
    for options, message in (
        ({"goal": "beauty"}, "goal must be one of likelihood, samples, embedding"),
        ({"n_seeds": 0}, "n_seeds must be a whole number of at least 1"),
        ({"epochs": 3}, "no option 'epochs'"),
        ({"methods": "gmm"}, "calls it 'mixture'"),
        ({"goal": "embedding"}, "give labels="),
        ({"likelihood": "bernoulli"}, "needs 0 or 1"),
        ({"labels": [1, 2]}, r"labels must be \(300,\)"),
    ):
        with pytest.raises(InputError, match=message):
            lf.compare(table, out=tmp_path / "never", backend="serial", **{**SMALL, **options})
    assert not (tmp_path / "never").exists()


def test_fifty_rows_are_compared(tmp_path):
    """Five of them choose, two on each side of a Frechet distance: too few for parts of its error."""
    x = np.random.default_rng(0).normal(size=(50, 3))
    small = {"methods": ["standard", "annealed"], "n_seeds": 1, "max_steps": 60, "n_importance_samples": 30}
    result = lf.compare(x, out=tmp_path / "run", backend="serial", goal="samples", **small)
    assert result.recommendation.verdict == "no_clear_winner"
    assert np.isfinite([row.samples for row in result.rows]).all()
