"""`diagnose`: the order, the evidence, the budget, on models whose fault is known."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

import latentfit as lf
from latentfit import methods
from latentfit.data.batch import Batch
from latentfit.data.synthetic import LinearGaussian
from latentfit.diagnosis import model, sections
from latentfit.diagnosis.material import gather, overlap
from latentfit.diagnosis.probe import probe
from latentfit.errors import DataWarning, InputError
from latentfit.evaluation.terms import elbo_terms
from latentfit.likelihoods import Normal
from latentfit.priors import LearnedGaussianPrior, MixturePrior, StandardNormalPrior
from latentfit.report.diagnosis_page import render_diagnosis
from latentfit.training.rng import isolated_rng
from tests.evaluation.conftest import exact_vae

TRUTH = LinearGaussian(8, 2, noise=0.5, random_state=0)
QUICK = {"depth": "quick", "n_importance_samples": 64}


def rows(n: int = 600, seed: int = 1) -> torch.Tensor:
    return TRUTH.sample(n, random_state=seed)[0].float()


def sound():
    return exact_vae(TRUTH).float()


class Foreign(nn.Module):
    """The sound model as somebody else might have written it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = sound()

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean, log_variance = self.inner.encoder(x).chunk(2, dim=-1)
        return mean, log_variance

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return self.inner.decoder(z)


def codes_of(dx) -> dict[str, str]:
    return {finding.code: finding.status for finding in dx.findings}


@pytest.fixture(scope="module")
def healthy():
    return lf.diagnose(sound(), rows(600, 1), X_train=rows(800, 2), **QUICK)


def test_a_sound_model_has_nothing_to_mend(healthy):
    assert healthy.first is None
    assert codes_of(healthy)["LF-PRIOR-02"] == "ok"
    assert healthy.prior_gap.interval[0] <= 0.02
    assert abs(healthy.inference_gap.value - TRUTH.inference_gap()) < 4 * healthy.inference_gap.std_error + 0.02
    assert (
        abs(healthy.log_px.value - float(TRUTH.log_prob(rows(600, 1).double()).mean())) < 1.0
    )  # of a part of the rows


def test_the_order_is_that_of_the_diagnosis(healthy):
    codes = [finding.code.rsplit("-", 1)[0] for finding in healthy.findings]
    order = ["LF-TRAIN", "LF-DECODER", "LF-COLLAPSE", "LF-INFERENCE", "LF-PRIOR", "LF-HOLES"]
    assert [code for code in dict.fromkeys(codes) if code in order] == order


def test_json_has_no_nan_and_comes_back(healthy, tmp_path):
    path = tmp_path / "dx.json"
    healthy.to_json(path)
    facts = json.loads(path.read_text(encoding="utf-8"))
    assert facts["prior_gap"]["value"] == healthy.prior_gap.value
    assert facts["first"] is None


def test_a_wrong_sigma_is_named_first_and_its_cost_is_the_closed_form():
    vae = sound()
    vae.likelihood = Normal(scale=1.5)
    dx = lf.diagnose(vae, rows(600, 1), X_train=rows(800, 2), **QUICK)
    assert dx.first.code == "LF-DECODER-01"
    used, optimal = dx.sigma
    # residuals at draws: E (x - W z - b)^2, which is noise^2 plus what q's spread adds
    expected = 8 * (np.log(used / optimal) + 0.5 * optimal**2 * (1 / used**2 - 1 / optimal**2))
    assert dx.budget.decoder.value == pytest.approx(expected, abs=4 * dx.budget.decoder.std_error)
    assert dx.budget.largest == "decoder"


@pytest.mark.parametrize("twice", [True, False])
def test_a_sigmoid_read_twice_is_named_first_and_read_once_is_not(twice):
    truth = LinearGaussian(40, 2, noise=1.0, random_state=0)
    x, x_test = ((truth.sample(n, random_state=n)[0] > 0).float() for n in (800, 400))
    with isolated_rng(0):
        vae = lf.VAEModule(nn.Linear(40, 4), nn.Linear(2, 40), latent_dim=2, likelihood="bernoulli")
    lf.fit(vae, x, max_steps=500, learning_rate=1e-2)
    foreign = Foreign()
    foreign.inner = vae
    foreign.decode = lambda z: vae.decoder(z).sigmoid()
    read_once = lf.adapt(foreign, example=x, likelihood="bernoulli")
    read_twice = vae.with_parts(decoder=nn.Sequential(vae.decoder, nn.Sigmoid()))
    dx = lf.diagnose(read_twice if twice else read_once, x_test, X_train=x, **QUICK)
    decoder = dx.findings[1]
    if not twice:
        assert decoder.status == "ok"
        assert decoder.parameters["explained"].interval[0] > 0.2
    else:
        assert dx.first is decoder
        assert decoder.parameters["share"] <= 0 < dx.kl.interval[0]


@pytest.mark.parametrize(("carried", "blamed"), [(0.15, False), (1.5, True)])
def test_a_decoder_that_ignores_its_codes_is_at_fault_only_where_they_carry_something(carried, blamed):
    x = rows(800, 2)
    encoder, decoder = nn.Linear(8, 4), nn.Linear(2, 8)
    with torch.no_grad():
        for part in (encoder, decoder):
            part.weight.zero_()
            part.bias.zero_()
        encoder.weight[0, 0] = carried / x[:, 0].std()  # the posterior's standard deviations are 1
        decoder.bias.copy_(x.mean(0))
    vae = sound().with_parts(encoder=encoder, decoder=decoder, likelihood=Normal(scale=float(x.std(0).mean())))
    dx = lf.diagnose(vae, rows(600, 1), X_train=x, **QUICK)
    assert int(dx.active_units) == 1
    assert (dx.findings[1].parameters.get("variant") == "nothing") == blamed
    assert (dx.first is dx.findings[1]) == blamed


def displaced():
    """The sound model under N(2, I)."""
    vae, prior = sound(), LearnedGaussianPrior(2)
    draws = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0)) + 2.0
    vae.prior = prior.fit(draws, std=torch.full_like(draws, 1e-3))
    return vae


def test_a_displaced_prior_is_named_first_and_costs_what_it_is_displaced_by():
    dx = lf.diagnose(displaced(), rows(600, 1), X_train=rows(800, 2), **QUICK)
    assert dx.first.code == "LF-PRIOR-01"
    assert dx.prior_gap.value == pytest.approx(4.0, abs=4 * dx.prior_gap.std_error + 0.2)  # 2 units by 2^2 / 2
    assert dx.holes.share.value > 0.05


def test_a_crippled_encoder_is_named_first():
    dx = lf.diagnose(exact_vae(TRUTH, std_factor=8.0).float(), rows(600, 1), X_train=rows(800, 2), **QUICK)
    assert dx.first.code == "LF-INFERENCE-01"
    assert dx.budget.largest == "inference"


def test_an_unfinished_warm_up_comes_before_everything():
    adapted = lf.adapt(Foreign(), example=rows(20), likelihood=Normal(scale=0.5), kl_weight=0.25, reconstruction="nll")
    dx = lf.diagnose(adapted, rows(400, 1), X_train=rows(400, 2), **QUICK)
    assert dx.first is dx.findings[0]
    assert dx.first.code == "LF-TRAIN-01"
    assert dx.effective_beta == pytest.approx(0.25)


def test_without_training_rows_halves_are_swapped_and_no_weight_is_changed():
    vae = sound()
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    state = torch.random.get_rng_state()
    dx = lf.diagnose(vae, rows(400, 1), groups=np.repeat(np.arange(100), 4), **QUICK)
    assert not dx.setting.separate
    assert dx.ladder.cross_fitted
    assert set(dx.gap_by_group) == {str(group) for group in range(100)}
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())


def test_labels_are_judged_beside_principal_components():
    x = rows(600, 1)
    dx = lf.diagnose(sound(), x, X_train=rows(400, 2), labels=(x[:, 0] > 0).numpy(), **QUICK)
    assert 0.5 < dx.knn.value <= 1
    assert dx.knn_baseline is not None
    assert "LF-EMBED-01" in codes_of(dx)


def test_without_a_likelihood_only_the_latents_are_looked_at():
    adapted = lf.adapt(Foreign(), example=rows(20))
    dx = lf.diagnose(adapted, rows(400, 1), X_train=rows(400, 2), **QUICK)
    assert dx.inference_gap is None
    assert dx.budget is None
    assert "log p(x)" in dx.setting.missing
    assert "LF-PRIOR-02" in codes_of(dx)


def test_a_probe_under_the_same_prior_finds_exactly_nothing():
    vae = sound()
    found = probe(vae, StandardNormalPrior(2), Batch(rows(200, 2)), Batch(rows(100, 1)), steps=20)
    assert [gain.value for gain in found.gain] == [0.0] * len(found.steps)
    assert not found.presses
    assert found.steps == [0, 20]


def test_a_probe_starts_at_the_prior_gap_and_leaves_the_model_alone():
    vae = sound()
    before = copy.deepcopy(vae.state_dict())
    test = Batch(rows(300, 1))
    shifted = LearnedGaussianPrior(2)
    mean = torch.randn(5_000, 2, generator=torch.Generator().manual_seed(0)) + 1.0
    shifted.fit(mean, std=torch.full_like(mean, 1e-3))
    found = probe(vae, shifted, Batch(rows(200, 2)), test, steps=10)
    terms = [elbo_terms(other, test, n_draws=4).elbo_per_row for other in (with_prior(vae, shifted), vae)]
    assert found.gain[0].value == pytest.approx(float((terms[0] - terms[1]).mean()), abs=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())


def test_a_prior_that_presses_is_found():
    """Three far clusters squeezed under N(0, I) by a large sigma: a mixture lets them go apart."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[-4.0, 0.0], [4.0, 0.0], [0.0, 6.0]])
    x = centres[torch.randint(3, (1_200,), generator=generator)] + 0.3 * torch.randn(1_200, 2, generator=generator)
    with isolated_rng(0):
        normal = {"name": "normal", "args": {"scale": 1.0}}
        module = methods.build(
            "standard", data_shape=(2,), latent_dim=2, likelihood=normal, network_args={"hidden": [32]}
        )
    lf.fit(module, x[:800], max_steps=600)
    z = Batch(x)
    learned = MixturePrior(2, n_components=3)
    codes = lf.evaluation.encode_rows(module, z)
    learned.fit(codes.mean, std=codes.std)
    found = probe(module, learned, z[slice(0, 800)], z[slice(800, None)], steps=300)
    assert found.pressure.value > 0
    assert found.presses


def test_rows_of_the_training_set_are_noticed():
    x = rows(100)
    assert overlap(x, torch.cat([x[:30], rows(50, 9)])) == 30
    assert overlap(torch.zeros(5, 3), torch.zeros(4, 3)) == 0  # blank rows are no evidence
    with pytest.warns(DataWarning, match="30 of 80 rows identical"):
        gather(sound(), torch.cat([x[:30], rows(50, 9)]), x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": "deep"}, "depth must be 'full' or 'quick'"),
        ({"goal": "fun"}, "goal must be"),
        ({"labels": [1, 2]}, r"labels has shape \(2,\), expected \(100,\)"),
        ({"labels": "cell_state"}, "names a column"),
        ({"groups": np.zeros((100, 2))}, "groups has shape"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        lf.diagnose(sound(), rows(100), X_train=rows(100, 2), **arguments)


def test_no_rows_at_all_is_said():
    with pytest.raises(InputError, match="give rows, diagnose"):
        lf.diagnose(sound())


def with_prior(vae, prior):
    changed = copy.deepcopy(vae)
    changed.prior = prior
    return changed


def test_pictures_are_of_the_test_rows_and_of_the_chosen_prior():
    labels = np.repeat(["a", "b"], 150)
    dx = lf.diagnose(displaced(), rows(300, 1), X_train=rows(400, 2), labels=labels, **QUICK)
    drawn = dx.pictures
    assert drawn.null_samples.shape == drawn.new_samples.shape == (36, 8)
    assert np.allclose(drawn.originals, rows(300, 1)[:36])
    assert drawn.map_codes.shape == (300, 2)
    assert list(drawn.map_labels) == list(labels)
    assert (drawn.hole_null < drawn.hole_line).mean() == pytest.approx(float(dx.holes.share))
    assert len(drawn.unit_kl) == 2


def test_codes_without_a_decoder_have_a_map_and_no_samples():
    z = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    model = lf.adapt(encode=lambda x: (x, torch.full_like(x, -4.0)), example=z, spread="logvar")
    drawn = lf.diagnose(model, z, depth="quick").pictures
    assert not len(drawn.null_samples)
    assert len(drawn.map_codes) == 150
    assert len(drawn.hole_codes) % 150 == 0


def test_of_uncertain_weights_the_centre_is_diagnosed_and_said_to_be():
    x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    vae = lf.VAE(latent_dim=2, method="ensemble", max_steps=30, random_state=0).fit(x.numpy())
    dx = lf.diagnose(vae, x.numpy(), depth="quick", n_importance_samples=200)
    centre = lf.diagnose(vae.module_.centre(), vae._rows(x.numpy()), depth="quick", n_importance_samples=200)
    assert (dx.setting.n_draws, centre.setting.n_draws) == (5, 1)
    assert "not the mixture of its 5 draws" in " ".join(str(dx).split())
    assert "draws, whose" not in str(centre)
    assert (dx.elbo.value, dx.log_px.value) == pytest.approx((centre.elbo.value, centre.log_px.value), abs=1e-4)


def test_the_page_of_uncertain_weights_has_their_bands(monkeypatch):
    monkeypatch.setattr(sections, "BAND_STEPS", 5)
    x = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    vae = lf.VAE(latent_dim=2, method="ensemble", max_steps=30, random_state=0).fit(x.numpy())
    rows = Batch(x)
    drawn = sections.band_pictures(vae.module_, rows, np.array([0.1, 0.7]), "mine", 0)
    assert drawn["band_units"].tolist() == [1, 0]  # the unit that carries most comes first
    assert drawn["weight_gaps"].shape == drawn["weight_units"].shape == (5,)
    low, high = drawn["band_low"], drawn["band_high"]
    assert (low <= high).all()
    assert (low < high).any()
    step = np.diff(drawn["band_grid"], axis=1)[:, :1]
    assert ((low * step).sum(1) < 1).all()  # densities of the draws integrate to 1, and lie between
    assert ((high * step).sum(1) > 0.99).all()
    monkeypatch.setattr(model, "band_pictures", lambda *given: drawn)
    monkeypatch.setattr(model.Measures, "simulated", lambda *given: None)
    dx = lf.diagnose(vae, x.numpy(), n_importance_samples=100)
    page = render_diagnosis(dx)
    assert "What the weights leave open" in page
    assert "Over 5 draws of the weights of <code>mine</code>" in page
    assert "at most 200 rows" in page  # why such a gap may lie below the one at the head of the page
    assert "Điều mà các trọng số để ngỏ" in render_diagnosis(dx, lang="vi")
    assert not sections.band_pictures(vae.module_.centre(), rows, np.ones(2), "", 0)  # its weights are certain
    assert not sections.band_pictures(vae.module_, rows[:19], np.ones(2), "", 0)


def test_what_is_said_beside_the_numbers_stands_in_the_json():
    x = rows(300, 1)
    once = lf.diagnose(sound(), x, **QUICK)
    notes = once.to_dict()["notes"]
    assert notes[1].startswith("No separate test data")
    assert all(" ".join(note.split()) in " ".join(str(once).split()) for note in notes)
    for _ in range(2):  # the second time Python itself would keep silent
        with pytest.warns(DataWarning, match="overlaps the training data"):
            twice = lf.diagnose(sound(), x[:200], X_train=x, lang="vi", **QUICK)
        said = twice.to_dict()["notes"]
        assert said[0].startswith("Chấm trên 200")
        assert said[-1].startswith("diagnose: X overlaps the training data (200 of 200 rows identical)")
    assert "notes" not in twice.to_dict()["setting"]
    blind = lf.adapt(encode=lambda x: (x, torch.full_like(x, 0.3)), example=rows(50, 1)[:, :2], spread="std")
    missing = lf.diagnose(blind, rows(200, 1)[:, :2], depth="quick").to_dict()["notes"]
    assert "Not measured: log p(x): no likelihood was given" in missing


def test_what_was_warned_of_when_a_model_was_adapted_is_among_the_notes():
    with pytest.warns(DataWarning, match="is read as standard deviation: no negatives"):
        guessed = lf.adapt(encode=lambda x: (x, torch.full_like(x, 0.3)), example=rows(50, 1)[:, :2])
    notes = lf.diagnose(guessed, rows(200, 1)[:, :2], depth="quick").to_dict()["notes"]
    assert any("is read as standard deviation: no negatives" in note for note in notes)


def test_a_learned_prior_of_the_model_s_own_is_called_by_its_name():
    learned = with_prior(sound(), MixturePrior(2, n_components=3))
    dx = lf.diagnose(learned, rows(300, 1), X_train=rows(300, 2), **QUICK)
    assert "the model&#39;s mixture prior" in render_diagnosis(dx)
    assert "tiên nghiệm mixture của mô hình" in render_diagnosis(dx, lang="vi")


def test_rows_without_a_label_neither_vote_nor_count():
    x = torch.cat((rows(150, 1), rows(150, 2) + 40))
    labels = np.repeat(["a", "b"], 150).astype(object)
    labels[::5] = None
    dx = lf.diagnose(displaced(), x, X_train=rows(400, 2), labels=labels, **QUICK)
    assert float(dx.knn) == pytest.approx(1.0)
    groups = np.arange(300).astype(float)
    groups[3] = np.nan
    with pytest.raises(InputError, match=r"groups: 1 of .* rows lack a group"):
        lf.diagnose(displaced(), x, X_train=rows(400, 2), groups=groups, **QUICK)
