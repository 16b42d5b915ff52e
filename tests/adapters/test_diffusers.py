"""A real `diffusers.AutoencoderKL`, small and random."""

from __future__ import annotations

import pytest
import torch

import latentfit as lf
from latentfit.adapters import adapt, latent_scale_card
from latentfit.evaluation.codes import encode_rows

diffusers = pytest.importorskip("diffusers", reason="needs diffusers in an environment of its own")
pytestmark = pytest.mark.filterwarnings("default")  # a foreign package's own


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        latent_channels=4,
        sample_size=16,
    )


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(24, 3, 4, 4, generator=generator) * 2 - 1
    return torch.nn.functional.interpolate(coarse, 16, mode="bilinear")


def test_codes_are_its_own(vae, images) -> None:
    adapted = adapt(vae, example=images, likelihood="normal")
    assert adapted.event_shape == (4, 8, 8)
    codes = encode_rows(adapted, images)
    with torch.no_grad():
        own = vae.eval().encode(images).latent_dist
    assert torch.equal(codes.mean, own.mean)
    torch.testing.assert_close(codes.std, own.std, rtol=3e-7, atol=0)
    with torch.no_grad():
        assert torch.equal(adapted.decode(own.mean), vae.decode(own.mean).sample)


def test_the_gain_is_real(vae, images, gain_is_real) -> None:
    gain_is_real(adapt(vae.train(), example=images, likelihood="normal"), images)
    assert vae.training


def test_kl_is_its_own(vae, images) -> None:
    adapted = adapt(vae, example=images, likelihood="normal")
    terms = lf.evaluation.elbo_terms(adapted, images, n_draws=1)
    with torch.no_grad():
        own = vae.eval().encode(images).latent_dist.kl()
    torch.testing.assert_close(torch.as_tensor(terms.kl_per_row), own.double(), rtol=1e-4, atol=1e-3)


def test_the_scale_card(vae, images) -> None:
    card = latent_scale_card(vae, images)
    with torch.no_grad():
        z = vae.eval().encode(images).latent_dist.sample(torch.Generator().manual_seed(0))
    assert float(card.scale_factor) == pytest.approx(1 / z.std().item(), rel=0.05)
    assert card.configured == 0.18215
    assert card.mean.shape == (4,)
    assert "config.scaling_factor 0.18215" in str(card)
