"""One face for whatever is diagnosed: our estimator, our module, an adapted and a foreign model."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import latentfit as lf
from latentfit.adapters import Loss, OwnRows, adapt, subject
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
    assert under.name == "VAE (binomial)"
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
    assert (under.vae, under.name, under.grey) == (module, "VAEModule (bernoulli)", False)
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
    with pytest.raises(InputError, match="give example="):
        subject(Foreign())


def test_own_rows_are_not_copied() -> None:
    own = OwnRows(lf.Batch(torch.zeros(3, 4)), lf.Batch(torch.zeros(2, 4)), lambda name: (np.zeros(3), np.zeros(2)))
    assert copy.deepcopy(own) is own
