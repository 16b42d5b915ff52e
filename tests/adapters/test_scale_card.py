"""The latent-scale card, against codes whose moments are known."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Normal

from latentfit.adapters import adapt, latent_scale_card


class Known(nn.Module):
    """Codes are the first two channels of x: channel c is c + (c + 1) x_c, with posterior std 0.5."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0, 2.0]).view(2, 1, 1))
        self.config = SimpleNamespace(scaling_factor=0.5)

    def encode(self, x):
        return SimpleNamespace(latent_dist=Normal(self.scale * x + torch.tensor([0.0, 1.0]).view(2, 1, 1), 0.5))

    def decode(self, z):
        return SimpleNamespace(sample=z)


def test_known_channels() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2_000, 2, 4, 4, generator=generator)
    x[:, 1] = 0.6 * x[:, 0] + 0.8 * x[:, 1]  # correlation 0.6
    card = latent_scale_card(Known(), x)
    np.testing.assert_allclose(card.mean, [0, 1], atol=0.05)
    np.testing.assert_allclose(card.std, [math.sqrt(1.25), math.sqrt(4.25)], rtol=0.02)
    np.testing.assert_allclose(card.channel_factors, 1 / card.std)
    np.testing.assert_allclose(card.noise_share, [0.25 / 1.25, 0.25 / 4.25], rtol=0.03)
    np.testing.assert_allclose(card.correlation[0, 1], 1.2 / math.sqrt(1.25 * 4.25), atol=0.02)
    # all z together: mean 1/2, variance (1.25 + 4.25) / 2 + 1/4
    assert float(card.scale_factor) == pytest.approx(1 / math.sqrt(3.0), rel=0.02)
    assert card.configured == 0.5
    assert card.configured_std == pytest.approx(0.5 * math.sqrt(3.0), rel=0.02)
    text = str(card)
    assert "config.scaling_factor 0.5 gives z a std of 0.8" in text
    assert len(text.splitlines()) == 1 + 2 + 2


def test_it_is_the_number_that_latent_diffusion_computes() -> None:
    """1 / std of drawn codes, flattened: by draws, as their code does on the first batch."""
    x = torch.randn(500, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    q = Known().encode(x).latent_dist
    torch.manual_seed(7)
    with torch.no_grad():
        drawn = 1 / torch.stack([q.sample() for _ in range(20)]).std().item()
    card = latent_scale_card(Known(), x)
    assert float(card.scale_factor) == pytest.approx(drawn, rel=0.003)
    assert card.scale_factor.interval[0] < float(card.scale_factor) < card.scale_factor.interval[1]


def test_its_error_is_that_over_repeats() -> None:
    values, errors = [], []
    for seed in range(60):
        x = torch.randn(80, 2, 1, 1, generator=torch.Generator().manual_seed(seed))
        card = latent_scale_card(Known(), x)
        values.append(float(card.scale_factor))
        errors.append(card.scale_factor.std_error)
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.35)


def test_vectors_have_units_for_channels() -> None:
    net = nn.Linear(3, 4)
    adapted = adapt(encode=lambda x: net(x).chunk(2, 1), example=torch.randn(8, 3), spread="logvar")
    card = latent_scale_card(adapted, torch.randn(50, 3))
    assert card.mean.shape == (2,)
    assert card.configured is None
    assert "config" not in str(card)
