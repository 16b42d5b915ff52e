"""The functional hole: what the prior alone costs the samples."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from latentfit.data import Batch
from latentfit.data.synthetic import LinearGaussian
from latentfit.errors import InputError
from latentfit.evaluation import encoder_features, functional_hole, sample_quality
from latentfit.likelihoods import Normal
from latentfit.model import VAEModule
from latentfit.priors import LearnedGaussianPrior, StandardNormalPrior

TRUTH = LinearGaussian(data_dim=6, latent_dim=2)


def shifted(by: float) -> LearnedGaussianPrior:
    prior = LearnedGaussianPrior(2).double()
    prior.mean.data.fill_(by)
    return prior


def test_the_true_prior_costs_nothing_in_nineteen_of_twenty_runs(exact_vae):
    vae = exact_vae(TRUTH)
    missed = 0
    for seed in range(30):
        hole = functional_hole(vae, TRUTH.sample(400, seed)[0], random_state=seed)
        low, high = hole.excess.interval
        missed += not low <= 0 <= high
    # binomial(30, 0.05) exceeds 5 in fewer than 1 of 300 runs
    assert missed <= 5


def test_a_displaced_prior_costs_its_displacement_and_the_model_s_own_stays(exact_vae):
    vae, x = exact_vae(TRUTH), TRUTH.sample(2000, 1)[0]
    own = vae.prior
    hole = functional_hole(vae, x, prior=shifted(1.5), features=encoder_features(vae))
    assert hole.excess.value == pytest.approx(hole.frechet.value - hole.floor.value)
    assert hole.excess.value == pytest.approx(2 * 1.5**2, rel=0.3)
    assert hole.excess.interval[0] > 0
    assert vae.prior is own
    assert hole.n == 1000


def test_the_numbers_are_those_of_sample_quality_with_that_prior(exact_vae):
    vae, x = exact_vae(TRUTH), TRUTH.sample(300, 1)[0]
    hole = functional_hole(vae, x, prior=shifted(0.5))
    vae.prior = shifted(0.5)
    quality = sample_quality(vae, x)
    assert (hole.frechet, hole.floor, hole.n) == (quality.frechet, quality.floor, quality.n)


def test_the_error_is_that_of_a_difference_on_the_same_reference(exact_vae):
    vae, x = exact_vae(TRUTH), TRUTH.sample(60, 1)[0]
    hole = functional_hole(vae, x, prior=StandardNormalPrior(2))  # float32 beside a float64 model
    assert hole.excess.std_error > 0
    with pytest.raises(InputError, match="latents of shape"):
        functional_hole(vae, x, prior=StandardNormalPrior(3))
    with pytest.raises(InputError, match="at least 4"):
        functional_hole(vae, x[:3])


class _Conditional(nn.Module):
    """x, c -> N(x - 10 c, 0.1^2), or z, c -> z + 10 c."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        self.sign = nn.Parameter(torch.tensor(sign))

    def forward(self, inputs: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        moved = inputs + 10 * self.sign * context
        return moved if self.sign > 0 else torch.cat((moved, torch.full_like(moved, -4.6)), -1)


def test_samples_of_a_conditional_model_have_the_contexts_of_the_decoded_codes():
    """Contexts move x by 10, the prior is q(z) in each: with the reference's contexts in the samples alone the floor
    was worse by how the contexts of two halves differ, 0.7 in the mean of these."""
    generator = torch.Generator().manual_seed(0)
    context = torch.randint(0, 2, (200, 1), generator=generator).float()
    x = torch.randn(200, 2, generator=generator) + 10 * context
    vae = VAEModule(_Conditional(-1.0), _Conditional(1.0), latent_dim=2, likelihood=Normal(scale=0.1), conditional=True)
    excess = [
        float(functional_hole(vae, Batch(x, context=context), features=lambda x: x, random_state=seed).excess)
        for seed in range(10)
    ]
    assert abs(sum(excess) / len(excess)) < 0.25


def grouped_rows(n_groups: int, each: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of the true model whose codes share nine tenths of their variance within a group, and the groups."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(n_groups).repeat_interleave(each)
    shape = {"generator": generator, "dtype": torch.float64}
    z = 0.9**0.5 * torch.randn(n_groups, 2, **shape)[label] + 0.1**0.5 * torch.randn(len(label), 2, **shape)
    noise = TRUTH.noise * torch.randn(len(label), 6, **shape)
    return z @ TRUTH.weight.T + TRUTH.bias + noise, label


def test_the_true_prior_costs_nothing_where_rows_are_related(exact_vae):
    """With both halves of the same groups the floor is too low; with the groups ignored most runs blame the prior."""
    vae, missed = exact_vae(TRUTH), {True: 0, False: 0}
    for seed in range(20):
        x, label = grouped_rows(20, 40, seed)
        for heeded in missed:
            hole = functional_hole(vae, x, groups=label.numpy() if heeded else None, random_state=seed)
            missed[heeded] += hole.excess.interval[0] > 0
    assert missed[True] <= 2
    assert missed[False] >= 8
