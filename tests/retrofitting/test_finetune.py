"""Training on from the prior found: units revived, a control beside it, the model itself untouched."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import latentfit as lf
from latentfit import VAEModule, networks, priors
from latentfit.data.batch import Batch
from latentfit.errors import CapabilityError, InputError
from latentfit.evaluation.codes import encode_rows
from latentfit.evaluation.collapse import active_units
from latentfit.likelihoods import Normal
from latentfit.retrofitting.finetune import finetune
from latentfit.retrofitting.revive import revive
from tests.retrofitting.test_retrofit import displaced, rows

X = Batch(torch.rand(600, 6, generator=torch.Generator().manual_seed(0)))
DEAD = [1, 3]


class TwoHeads(nn.Module):
    """The encoder of most tutorials: mean and log-variance from two layers."""

    def __init__(self):
        super().__init__()
        self.body, self.mean, self.logvar = nn.Linear(6, 16), nn.Linear(16, 4), nn.Linear(16, 4)

    def forward(self, x):
        h = self.body(x).relu()
        return self.mean(h), self.logvar(h)


ENCODERS = {
    "mlp": lambda: networks.create("mlp", in_shape=6, out_shape=8, hidden=[16]),
    "two heads": TwoHeads,
}
DECODERS = {
    "mlp": lambda: networks.create("mlp", in_shape=4, out_shape=6, hidden=[16]),
    "gated_mlp": lambda: networks.create("gated_mlp", in_shape=4, out_shape=6, hidden=[16]),
}


def collapsed(encoder, decoder):
    """A VAE of four units of which two give N(0, 1) whatever x is, and are not read."""
    torch.manual_seed(0)
    vae = VAEModule(ENCODERS[encoder](), DECODERS[decoder](), "standard", likelihood=Normal(scale=0.5), latent_dim=4)
    with torch.no_grad():
        head = vae.encoder.layers[-1] if encoder == "mlp" else None
        for d in DEAD:
            if head is None:
                for layer in (vae.encoder.mean, vae.encoder.logvar):
                    layer.weight[d], layer.bias[d] = 0.0, 0.0
            else:
                head.weight[[d, d + 4]], head.bias[[d, d + 4]] = 0.0, 0.0
        living = [d for d in range(4) if d not in DEAD]
        if head is not None:
            head.weight[living] *= 10
        else:
            vae.encoder.mean.weight[living] *= 10
        for layer in vae.decoder.modules():
            weight = getattr(layer, "weight", None)
            if weight is not None and weight.shape[1] == 4:
                weight[:, DEAD] = 0.0
    return vae


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("encoder", ENCODERS)
def test_dead_units_carry_something_and_are_read(encoder, decoder):
    vae = collapsed(encoder, decoder)
    before = encode_rows(vae, X)
    assert int(active_units(before)) == 2
    found = revive(vae, X)
    assert (found.dead, found.done, found.reason) == (2, 2, "")
    after = encode_rows(vae, X)
    assert int(active_units(after)) == 4
    living = [d for d in range(4) if d not in DEAD]
    torch.testing.assert_close(after.mean[:, living], before.mean[:, living])
    whole = after.mean.var(0) + after.std.square().mean(0)
    torch.testing.assert_close(whole[DEAD], torch.ones(2), rtol=0.1, atol=0)  # as wide as p
    z = after.mean[:50].clone()
    moved = z.clone()
    moved[:, DEAD] += 1
    assert (vae.decode(moved) - vae.decode(z)).abs().amax(1).min() > 1e-4
    assert revive(vae, X).dead == 0


def test_what_cannot_be_revived_is_said():
    class Closed(nn.Module):
        def forward(self, x):
            return torch.cat((x[:, :2], torch.zeros(len(x), 6)), 1)

    vae = VAEModule(Closed(), DECODERS["mlp"](), "standard", likelihood=Normal(scale=0.5), latent_dim=4)
    found = revive(vae, X)
    assert (found.dead, found.done) == (2, 0)
    assert "no linear layer" in found.reason


@pytest.fixture(scope="module")
def found():
    vae = displaced()
    state = {key: value.clone() for key, value in vae.state_dict().items()}
    prior = priors.create("learned_gaussian", latent_dim=2)
    codes = encode_rows(vae, rows(800, 1))
    prior.fit(codes.mean, std=codes.std)
    return finetune(vae, prior, Batch(rows(800, 1)), Batch(rows(400, 2)), steps=60), vae, state, prior


def test_the_arms_are_paired_with_the_model_given(found):
    tuned, vae, as_it_was, prior = found
    assert [arm.name for arm in tuned.arms] == ["before", "post hoc", "fine-tuned", "control"]
    assert tuned["before"].gain.value == 0
    assert tuned["post hoc"].gain.value == pytest.approx(4.0, abs=0.5)  # the displaced prior's cost
    assert tuned["control"].gain.value < tuned["fine-tuned"].gain.value
    sums = tuned["post hoc"].gain.value + tuned.added.value
    assert sums == pytest.approx(tuned["fine-tuned"].gain.value, abs=1e-6)
    assert (tuned["fine-tuned"].steps, tuned["control"].steps, tuned["post hoc"].steps) == (60, 60, 0)
    assert tuned.embeddings["before"].shape == tuned.embeddings["after"].shape == (400, 2)
    assert len(tuned.leaderboard) == 4
    assert all(torch.equal(value, as_it_was[key]) for key, value in vae.state_dict().items())
    assert not torch.equal(tuned.model.prior.mean, prior.mean)  # it moved, and the one given did not


@pytest.mark.slow
def test_a_repeat_is_the_same(found):
    tuned, vae, _, prior = found
    again = finetune(vae, prior, Batch(rows(800, 1)), Batch(rows(400, 2)), steps=60)
    assert again.added.value == tuned.added.value
    assert again.owed.value == tuned.owed.value


@pytest.mark.parametrize("steps", [0, -3, 2.5, False])
def test_steps_are_true_or_a_positive_number(steps):
    vae = displaced()
    with pytest.raises(InputError, match="steps must be True or a whole number"):
        finetune(vae, vae.prior, Batch(rows(80, 1)), Batch(rows(40, 2)), steps=steps)


def test_without_a_density_there_is_no_elbo():
    vae = displaced()
    empirical = priors.EmpiricalPrior(2, lambda n, generator=None: torch.randn(n, 2))
    with pytest.raises(CapabilityError, match="no ELBO"):
        finetune(vae, empirical, Batch(rows(80, 1)), Batch(rows(40, 2)), steps=5)


def test_retrofit_goes_on_when_asked():
    vae = displaced()
    fix = lf.retrofit(vae, rows(800, 1), X_test=rows(400, 2), priors=["learned_gaussian"], finetune=40)
    assert fix.weights_unchanged  # of the model that was given: a copy was trained
    names = list(fix.leaderboard["prior"])
    assert names[-3:] == ["post hoc", "fine-tuned", "control"]
    text = fix.summary()
    assert "A copy trained on for 40 steps" in " ".join(text.split())
    assert "transform(X) returns what it returned before" not in " ".join(text.split())
    assert "fine-tuned" in fix.to_json()
    if fix.finetuned.won.name == "fine-tuned":
        assert fix.model is fix.finetuned.model
        assert fix.prior is fix.model.prior
    for lang in ("en", "vi"):
        assert fix.summary(lang)


def test_an_estimator_stays_one():
    vae = lf.VAE(latent_dim=2, max_steps=40, network_args={"hidden": [16]}).fit(rows(300, 3).numpy())
    fix = lf.retrofit(vae, rows(300, 3).numpy(), X_test=rows(200, 4).numpy(), priors=["mixture"], finetune=30)
    assert isinstance(fix.model, lf.VAE)
    assert fix.model.transform(rows(5, 5).numpy()).shape == (5, 2)
    assert vae.module_ is not fix.model.module_


def test_a_penalty_toward_the_prior_is_one_toward_the_arms_own():
    from latentfit.retrofitting.finetune import _copied

    prior, old = lf.priors.create("mixture", latent_dim=2), lf.priors.create("standard", latent_dim=2)
    other = lf.priors.create("standard", latent_dim=2)
    penalties = [lf.penalties.mmd(target=prior), lf.penalties.mmd(target=old), lf.penalties.mmd(target=other)]
    goal = _copied(lf.ELBO(0.0, penalties), (prior, old))
    assert [penalty.target is None for penalty in goal.penalties] == [True, True, False]
    assert all(penalty.target is not None for penalty in penalties)
