"""exemplar's density where its components are narrow beside their spread."""

from __future__ import annotations

import torch

from latentfit.priors import create


def test_distances_keep_their_digits():
    """3 beside 3e-4: in float32 |z|^2 / s^2 is 1e8, and the distances of neighbours are lost in it."""
    generator = torch.Generator().manual_seed(0)
    mean = 3 * torch.randn(300, 2, generator=generator)
    prior = create("exemplar", latent_dim=2).fit(mean, std=torch.full_like(mean, 3e-4))
    with torch.no_grad():
        prior.log_std.fill_(torch.tensor(3e-4).log())
    z = mean[:50] + 3e-4 * torch.randn(50, 2, generator=generator)
    found = prior.log_prob(z)
    assert found.dtype == torch.float32
    exact = prior.double().log_prob(z.double())
    torch.testing.assert_close(found.double(), exact, atol=1e-3, rtol=0)
