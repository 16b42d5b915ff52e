"""One face for whatever is diagnosed: our estimator, our module, an adapted and a foreign model."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import latentfit as lf
from latentfit.adapters import Loss, OwnRows, adapt, subject
from latentfit.adapters.subject import facts_of
from latentfit.errors import InputError


class Foreign(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.to_z, self.to_x = nn.Linear(4, 4), nn.Linear(2, 4)

    def encode(self, x):
        return self.to_z(x).chunk(2, 1)

    def decode(self, z):
        return self.to_x(z)


def rows(n: int = 40) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32)


def test_the_estimator() -> None:
    images = np.random.default_rng(0).integers(0, 17, size=(60, 4))
    vae = lf.VAE(latent_dim=2, max_steps=20, likelihood={"name": "binomial", "args": {"n": 16}}).fit(images)
    under = subject(vae, images)
    assert under.vae is vae.module_
    assert under.name == "VAE"
    assert under.loss == Loss(1.0, "nll")
    assert torch.equal(under.rows(images, "X").x, torch.as_tensor(images).float())
    assert under.can_score
    assert not under.grey


def test_an_estimator_that_is_not_fitted() -> None:
    with pytest.raises(InputError, match="not fitted yet: call fit"):
        subject(lf.VAE())


def test_our_module() -> None:
    module = lf.VAEModule(nn.Linear(4, 4), nn.Linear(2, 4), latent_dim=2)
    binary = (rows() > 0).astype(np.float32)
    under = subject(module, binary)
    assert (under.vae, under.name, under.grey) == (module, "VAEModule", False)
    assert subject(module, 0.5 * binary).grey
    assert under.rows(binary, "X").x.shape == (40, 4)


def test_adapted_and_foreign() -> None:
    adapted = adapt(
        Foreign(), example=rows(), likelihood="normal", kl_weight=2.0, reconstruction="nll", spread="logvar"
    )
    under = subject(adapted)
    assert under.vae is adapted
    assert under.loss == Loss(2.0, "nll")
    assert under.name == "Foreign"
    assert under.own_rows is None
    with pytest.raises(InputError, match=r"X has rows of shape \(3,\); the model was adapted on rows of shape \(4,\)"):
        under.rows(rows()[:, :3], "X")
    foreign = subject(Foreign(), rows())
    assert not foreign.can_score
    with pytest.raises(InputError, match="give rows as its training saw them"):
        subject(Foreign())


def test_own_rows_are_not_copied() -> None:
    own = OwnRows(lf.Batch(torch.zeros(3, 4)), lf.Batch(torch.zeros(2, 4)), lambda name: (np.zeros(3), np.zeros(2)))
    assert copy.deepcopy(own) is own


def trained(max_steps: int, **settings) -> lf.VAEModule:
    module = lf.VAEModule(nn.Linear(4, 4), nn.Linear(2, 4), latent_dim=2, likelihood="normal")
    lf.fit(module, rows(200), max_steps=max_steps, validate_every=max(1, max_steps // 20), **settings)
    return module


def test_our_module_remembers_its_training_and_takes_it_along_when_saved(tmp_path) -> None:
    module = trained(60)
    assert (module.trained["steps"], module.trained["kl_weight"]) == (60, 1.0)
    assert len(module.trained["validation"]) == 20
    facts = subject(module, rows()).training_facts
    assert (facts.kl_weight_reached, facts.steps) == (1.0, 60)
    assert facts.converged is (facts.late_gain < 0.5)
    lf.save(module, tmp_path / "vae")
    encoder, decoder = nn.Linear(4, 4), nn.Linear(2, 4)
    again = lf.load(tmp_path / "vae", encoder=encoder, decoder=decoder)
    assert again.trained == module.trained
    assert subject(again, rows()).training_facts == facts


def test_what_was_still_rising_what_stopped_early_and_what_was_too_short() -> None:
    record = {"steps": 1_000, "max_steps": 1_000, "stopped": "max_steps", "kl_weight": 1.0}
    rising = [[step, 1_000.0 - step / 10] for step in range(50, 1_050, 50)]
    facts = facts_of({**record, "validation": rising})
    assert facts.converged is False
    assert facts.late_gain == pytest.approx(20.0)
    assert facts_of({**record, "stopped": "early", "validation": rising}).converged is True
    flat = facts_of({**record, "validation": [[step, 900.0] for step in range(50, 1_050, 50)]})
    assert flat.converged is True
    short = facts_of({**record, "validation": rising[:3]})
    assert (short.converged, short.steps) == (None, 1_000)


def test_an_unfinished_weight_is_remembered() -> None:
    assert trained(20, objective=lf.ELBO(kl_weight=0.25)).trained["kl_weight"] == 0.25


def test_a_module_of_ones_own_loop_has_no_record() -> None:
    module = lf.VAEModule(nn.Linear(4, 4), nn.Linear(2, 4), latent_dim=2, likelihood="normal")
    assert module.trained is None
    assert subject(module, rows()).training_facts is None
