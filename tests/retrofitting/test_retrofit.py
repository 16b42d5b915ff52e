"""`retrofit`: what it keeps, what it wins, what it leaves alone."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import latentfit as lf
from latentfit.data.batch import Batch
from latentfit.data.synthetic import LinearGaussian
from latentfit.diagnosis.material import gather
from latentfit.errors import InputError
from latentfit.evaluation.codes import encode_rows
from latentfit.evaluation.gap import prior_gap_per_row
from latentfit.priors import LearnedGaussianPrior
from latentfit.report.retrofit_page import render_retrofit
from latentfit.retrofitting.rows import split
from tests.evaluation.conftest import exact_vae

TRUTH = LinearGaussian(8, 2, noise=0.5, random_state=0)
CHEAP = ("learned_gaussian", "mixture")


def rows(n: int, seed: int) -> torch.Tensor:
    return TRUTH.sample(n, random_state=seed)[0].float()


def displaced():
    """The exact model under N(2, I): a Gaussian wins back 4 nats."""
    vae = exact_vae(TRUTH).float()
    prior = LearnedGaussianPrior(2)
    draws = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0)) + 2.0
    vae.prior = prior.fit(draws, std=torch.full_like(draws, 1e-3))
    return vae


@pytest.fixture(scope="module")
def fix():
    return lf.retrofit(displaced(), rows(1_200, 1), X_test=rows(600, 2), priors=CHEAP)


def test_what_is_displaced_is_won_back_and_the_smallest_prior_is_kept(fix):
    assert fix.kept.name == "learned_gaussian"
    assert fix.gain.value == pytest.approx(4.0, abs=4 * fix.gain.std_error + 0.2)
    assert fix.changed
    assert fix.weights_unchanged


def test_a_ladder_is_its_rungs(fix):
    assert sorted(rung.name for rung in fix.ladder) == sorted(CHEAP)


def test_the_gain_is_the_held_out_elbo_won_by_the_same_draws(fix):
    vae, x = displaced(), Batch(rows(600, 2))
    codes = encode_rows(vae, x)
    z = codes.sample(4, torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before, after = (vae.log_likelihood(x, z) + p.log_prob(z) for p in (vae.prior, fix.prior))
    assert fix.gain.value == pytest.approx(float((after - before).double().mean()), abs=1e-4)


def test_errors_are_those_of_groups():
    """Thirty groups of twenty near copies tell as much as thirty rows do."""
    each, noise = rows(30, 2).repeat_interleave(20, 0), torch.randn(600, 8, generator=torch.Generator().manual_seed(0))
    few, label = each + 0.01 * noise, np.arange(600) // 20
    vae, x = displaced(), rows(1_200, 1)
    by_rows = lf.retrofit(vae, x, X_test=few, priors=("learned_gaussian",))
    grouped = lf.retrofit(vae, x, X_test=few, groups=label, priors=("learned_gaussian",))
    assert grouped.gain.value == by_rows.gain.value
    assert 3 < grouped.gain.std_error / by_rows.gain.std_error < 6  # sqrt(20) = 4.5
    assert (by_rows.setting.n_groups, grouped.setting.n_groups) == (0, 30)
    assert "30 groups; errors are theirs" in str(grouped)
    assert "30 groups; errors are theirs" in render_retrofit(grouped)
    halves = lf.retrofit(vae, few, groups=label, priors=("learned_gaussian",))
    assert halves.setting.n_groups < 15
    parts = split(gather(vae, few, None, groups=label), 0)
    kinds = [set(codes.groups) for codes in (parts.fitted, parts.validation, parts.selection, parts.test)]
    assert sum(map(len, kinds)) == 30  # no group in two parts
    assert "3 groups are too few to keep apart" in str(
        lf.retrofit(vae, few, groups=label // 10, priors=("learned_gaussian",))
    )


def test_log_px_is_won_too_by_about_as_much(fix):
    assert fix.log_px_gain.interval[0] > 0
    assert fix.log_px_gain.value == pytest.approx(fix.gain.value, abs=0.5)


def test_the_model_goes_on_with_the_new_prior_alone(fix):
    assert fix.model.prior is fix.prior
    z = fix.model.prior.sample(20_000, generator=torch.Generator().manual_seed(0))
    assert z.mean(0).abs().max() < 0.2  # at q(z), not at 2
    score = lf.evaluation.log_likelihood(fix.model, rows(50, 3), n_importance_samples=64)
    exact = TRUTH.log_prob(rows(50, 3).double()).float()
    assert torch.as_tensor(score.values).float().mean() == pytest.approx(float(exact.mean()), abs=0.2)


def test_the_original_keeps_its_prior():
    vae = displaced()
    prior = vae.prior
    fixed = lf.retrofit(vae, rows(400, 1), X_test=rows(200, 2), priors=("learned_gaussian",))
    assert vae.prior is prior
    assert fixed.model.encoder is vae.encoder


def test_a_prior_that_fits_is_kept():
    fixed = lf.retrofit(exact_vae(TRUTH).float(), rows(1_200, 1), X_test=rows(600, 2), priors=CHEAP)
    assert fixed.kept.name == "nothing"
    assert not fixed.changed
    assert fixed.gain.value == 0.0
    assert fixed.log_px_gain is None


def test_one_set_of_rows_is_split_and_no_row_is_used_twice():
    fixed = lf.retrofit(displaced(), rows(1_000, 1), priors=("learned_gaussian",))
    setting = fixed.setting
    assert not setting.separate
    assert setting.n_fit + setting.n_selection + setting.n_test <= 1_000
    assert fixed.gain.value > 3


@pytest.mark.parametrize(("n_test", "chose", "n_selection"), [(600, "train", 240), (2_000, "test", 1_000)])
def test_test_rows_choose_where_they_are_enough_and_none_both_chooses_and_measures(n_test, chose, n_selection):
    material = gather(displaced(), rows(n_test, 2), rows(1_200, 1), what="retrofit")
    parts = split(material, 0)
    assert (parts.chose, len(parts.selection)) == (chose, n_selection)
    assert not set(parts.chosen_rows) & set(parts.measured_rows)
    assert len(parts.chosen_rows) + len(parts.measured_rows) == n_test
    assert torch.equal(parts.test.mean, material.codes_test.mean[torch.as_tensor(parts.measured_rows)])
    assert torch.equal(parts.measured(material).x, material.test.x[torch.as_tensor(parts.measured_rows)])
    everyone = len(parts.fitted) + len(parts.validation) + (len(parts.selection) if chose == "train" else 0)
    assert everyone == 1_200
    choosing, telling = (len(parts.judged(material, choosing=flag)) for flag in (True, False))
    assert (choosing, telling) == ((n_test, n_test) if chose == "train" else (n_selection, n_test))


def test_pictures_show_both_priors_where_one_was_put_in_place(fix):
    drawn = fix.pictures
    assert drawn.null_samples.shape == drawn.new_samples.shape == drawn.reconstructions.shape == (36, 8)
    # N(2, I) is seen to lie 2 sqrt(2) off along the worst direction, the fitted prior is not
    assert abs(drawn.map_null[:, 0].mean() - drawn.map_codes[:, 0].mean()) > 2
    assert abs(drawn.map_new[:, 0].mean() - drawn.map_codes[:, 0].mean()) < 0.3
    shares = [float((values < drawn.hole_line).mean()) for values in (drawn.hole_null, drawn.hole_new)]
    assert shares == pytest.approx(fix.holes)
    assert drawn.hole_samples.shape == (3, 8)


def test_a_loader_is_read_once_and_means_the_same():
    x = rows(600, 1)
    reads = []

    class Counting(TensorDataset):
        def __getitem__(self, index):
            reads.append(index)
            return super().__getitem__(index)

    loader = DataLoader(Counting(x, torch.zeros(600)), batch_size=100)
    options = {"X_test": rows(300, 2), "priors": ("learned_gaussian",)}
    streamed, whole = lf.retrofit(displaced(), loader, **options), lf.retrofit(displaced(), x, **options)
    assert streamed.gain.value == pytest.approx(whole.gain.value, abs=1e-5)
    assert len(reads) <= 700  # once for the codes; an example before


def test_an_estimator_stays_one():
    x = rows(400, 1).numpy()
    vae = lf.VAE(latent_dim=2, max_steps=60).fit(x)
    fixed = lf.retrofit(vae, x, priors=("learned_gaussian",))
    assert isinstance(fixed.model, lf.VAE)
    assert fixed.model.module_.prior is fixed.prior
    assert np.allclose(fixed.model.transform(x), vae.transform(x))  # the encoder was not touched
    assert fixed.model.score_samples(x[:5]).shape == (5,)
    assert vae.module_.prior is not fixed.prior or not fixed.changed


def test_the_kl_is_that_from_the_models_own_prior(fix):
    vae = displaced()
    terms = lf.evaluation.elbo_terms(vae, rows(600, 2), n_draws=64)
    assert fix.kl.value == pytest.approx(terms.kl.value, abs=0.15)
    normal = displaced()
    normal.prior = lf.priors.create("standard", latent_dim=2)
    other = lf.evaluation.elbo_terms(normal, rows(600, 2), n_draws=64)
    assert abs(fix.kl.value - other.kl.value) > 2


def test_too_few_rows_are_refused_in_one_line():
    with pytest.raises(InputError, match="retrofit: X has 39 rows, of which a half fits priors"):
        lf.retrofit(displaced(), rows(39, 1))
    with pytest.raises(InputError, match="retrofit: X_train has 19 rows; at least 20"):
        lf.retrofit(displaced(), rows(19, 1), X_test=rows(10, 2))
    with pytest.raises(InputError, match="retrofit: X_test has 9 rows; at least 10"):
        lf.retrofit(displaced(), rows(20, 1), X_test=rows(9, 2))


def test_columns_keep_their_names():
    names = list("abcdefgh")
    table = pd.DataFrame(rows(100, 1).numpy(), columns=names)
    assert gather(displaced(), table, None).subject.columns == names
    vae = lf.VAE(latent_dim=2, max_steps=5).fit(table)
    fixed = lf.retrofit(vae, table, priors=("learned_gaussian",))
    assert fixed.setting.columns == names
    assert gather(displaced(), rows(100, 1), None).subject.columns == []


def test_the_kept_prior_is_saved_and_comes_back(fix, tmp_path):
    lf.save(fix.prior, tmp_path / "prior")
    again = lf.priors.load(tmp_path / "prior")
    z = rows(10, 4)[:, :2]
    assert torch.equal(again.log_prob(z), fix.prior.log_prob(z))


def test_json_is_complete(fix, tmp_path):
    fix.to_json(tmp_path / "fix.json")
    facts = json.loads((tmp_path / "fix.json").read_text(encoding="utf-8"))
    assert facts["kept"] == "learned_gaussian"
    assert facts["gain"]["value"] == fix.gain.value
    assert [row["name"] for row in facts["rows"]] == list(fix.leaderboard["prior"])
    assert len(facts["notes"]) >= 2
    printed = " ".join(str(fix).split())
    assert all(" ".join(note.split()) in printed for note in facts["notes"])
    assert any(note.startswith("The VAE's weights are unchanged") for note in facts["notes"])


def test_of_uncertain_weights_it_is_said_which_numbers_are_the_centre_s():
    x = torch.randn(400, 4, generator=torch.Generator().manual_seed(0)).numpy()
    vae = lf.VAE(latent_dim=2, method="ensemble", max_steps=30, random_state=0).fit(x)
    fix = lf.retrofit(vae, x, priors=["learned_gaussian"])
    said = "log p(x) is that of the VAE at its centre, samples and their Fréchet distance are of its 5 draws"
    assert said in " ".join(str(fix).split())
    assert any(said in note for note in fix.to_dict()["notes"])
    assert "ở tâm của nó" in render_retrofit(fix, lang="vi")
    assert "at its centre" not in str(lf.retrofit(vae.module_.centre(), x, priors=["learned_gaussian"]))


def test_tables_of_gaps_agree_with_their_rows(fix):
    rung = fix.ladder["learned_gaussian"]
    assert fix.kept.gap.value == pytest.approx(float(rung.per_row.mean()))
    vae = displaced()
    on_test = prior_gap_per_row(fix.prior, vae.prior, encode_rows(vae, Batch(rows(600, 2))))
    assert fix.gain.value == pytest.approx(float(on_test.mean()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"goal": "embedding"}, "does not move"),
        ({"goal": "fun"}, "goal must be"),
        ({"max_minutes": 0}, "max_minutes must be positive"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        lf.retrofit(displaced(), rows(100, 1), X_test=rows(50, 2), priors=("learned_gaussian",), **arguments)
