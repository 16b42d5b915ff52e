"""The more a penalty weighs, the nearer q(z) is to its target: five weights, three seeds, measured by MMD."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import latentfit as lf
from latentfit.errors import InputError
from latentfit.evaluation import encode_rows, mmd2
from latentfit.training.rng import isolated_rng

WEIGHTS = {
    "mmd": (0.0, 10.0, 100.0, 1_000.0, 10_000.0),
    "sliced_wasserstein": (0.0, 1.0, 10.0, 100.0, 1_000.0),
    "energy": (0.0, 1.0, 10.0, 100.0, 1_000.0),
    "adversarial": (0.0, 0.3, 1.0, 3.0, 10.0),
    "total_correlation": (0.0, 1.0, 3.0, 10.0, 30.0),
}
STEPS = 150


def clusters() -> torch.Tensor:
    """Three clusters in 4 dimensions: codes that are left alone are three far blobs."""
    generator = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(3, 4, generator=generator)
    return centres[torch.arange(600) % 3] + 0.3 * torch.randn(600, 4, generator=generator)


def distance(name: str, weight: float, seed: int) -> float:
    """MMD^2 of the codes from N(0, I), or from the product of their own margins, after a short training."""
    x = clusters()
    with isolated_rng(seed):
        model = lf.VAEModule(
            encoder=lf.networks.create("mlp", in_shape=4, out_shape=4, hidden=[32]),
            decoder=lf.networks.create("mlp", in_shape=2, out_shape=4, hidden=[32]),
            latent_dim=2,
            likelihood=lf.likelihoods.create("normal", scale=0.5),
        )
    dependence = name == "total_correlation"
    objective = lf.ELBO(0.2 if dependence else 0.0, [lf.penalties.create(name, weight=weight)])
    lf.fit(model, x, objective=objective, max_steps=STEPS, learning_rate=2e-2, random_state=seed, patience=None)
    generator = torch.Generator().manual_seed(1)
    z = encode_rows(model, x).sample(1, generator)[0]
    if dependence:
        z = (z - z.mean(0)) / z.std(0)
        other = torch.stack([z[torch.randperm(len(z), generator=generator), d] for d in range(2)], 1)
    else:
        other = torch.randn(2_000, 2, generator=generator)
    return mmd2(z, other, [2.0, 1.0, 0.5])


#: a third of a minute each
SLOW = ("energy", "sliced_wasserstein", "adversarial")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in WEIGHTS])
def test_the_codes_come_nearer_as_the_weight_rises(name):
    """Rank correlation of weight and distance below -0.7 over all runs, and each mean within the one before."""
    found = np.array([[distance(name, weight, seed) for seed in range(3)] for weight in WEIGHTS[name]])
    means = found.mean(1)
    ranks = np.argsort(np.argsort(found.ravel()))
    correlation = np.corrcoef(np.repeat(np.arange(5), 3), ranks)[0, 1]
    assert correlation < -0.7, found
    assert means[-1] < 0.3 * means[0], found


def test_a_target_given_as_samples_is_told_what_makes_a_prior_of_them() -> None:
    with pytest.raises(InputError, match=r"mmd: target must be a prior, got Tensor\..*EmpiricalPrior\(D, samples="):
        lf.penalties.mmd(target=torch.zeros(10, 2))
