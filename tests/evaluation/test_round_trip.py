"""The share of the variance that decode(mean) explains."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from latentfit.data.batch import Batch
from latentfit.data.synthetic import LinearGaussian
from latentfit.evaluation.round_trip import explained_variance
from tests.evaluation.conftest import exact_vae

TRUTH = LinearGaussian(8, 2, noise=0.5, random_state=0)
X = TRUTH.sample(5_000, random_state=1)[0].float()


def test_it_is_that_of_the_data_s_own_reconstructions():
    vae = exact_vae(TRUTH).float()
    with torch.no_grad():
        residual = (X - vae.reconstruct(X)).square().sum()
    share = explained_variance(vae, X)
    assert share.value == pytest.approx(float(1 - residual / (X - X.mean(0)).square().sum()), abs=1e-5)
    assert share.interval[0] > 0.3


def test_the_mean_row_explains_nothing_and_worse_is_below_0():
    vae = exact_vae(TRUTH).float()
    nothing = nn.Linear(2, 8)
    nn.init.zeros_(nothing.weight)
    for shift, expected in ((0.0, 0.0), (3.0, -8 * 9.0 / float(X.var(0, correction=0).sum()))):
        with torch.no_grad():
            nothing.bias.copy_(X.mean(0) + shift)
        assert explained_variance(vae.with_parts(decoder=nothing), X).value == pytest.approx(expected, abs=1e-4)


def test_unobserved_entries_do_not_count():
    vae = exact_vae(TRUTH).float()
    mask = torch.rand(X.shape, generator=torch.Generator().manual_seed(0)) > 0.3
    spoilt = torch.where(mask, X, 1e6)
    masked = [explained_variance(vae, Batch(x, mask=mask)) for x in (X, spoilt)]
    assert masked[0] == masked[1]
    assert 0 < masked[0].value < explained_variance(vae, X).value


def test_rows_that_do_not_vary_have_no_share():
    assert explained_variance(exact_vae(TRUTH).float(), X[:1].expand(20, -1)).value == 0
    assert np.isfinite(explained_variance(exact_vae(TRUTH).float(), X[:2]).value)


def test_the_error_is_that_of_a_ratio():
    """Rows that all lose the same share of their own variance say that share without an error, however it varies."""
    scale = torch.linspace(0.1, 10, 200, dtype=torch.float64)[:, None]
    x = torch.cat((scale, -scale), 0) * torch.ones(1, 3, dtype=torch.float64)

    class Shrunk(nn.Module):
        def __init__(self, by: float, spread: bool) -> None:
            super().__init__()
            self.by, self.spread = nn.Parameter(torch.tensor(by)), spread

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat((self.by * x, torch.zeros_like(x)), -1) if self.spread else self.by * x

    from latentfit.model import VAEModule

    vae = VAEModule(Shrunk(1.0, True), Shrunk(0.5, False), latent_dim=3, likelihood="normal").double()
    found = explained_variance(vae, x)
    assert found.value == pytest.approx(0.75)
    assert found.std_error < 1e-12
