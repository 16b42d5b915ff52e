"""A target known by samples, by a sampler, by a density."""

import pytest
import torch

import latentfit as lf
from latentfit.errors import CapabilityError, InputError
from latentfit.priors import EmpiricalPrior


def test_samples_are_drawn_with_replacement_and_saved(tmp_path):
    given = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    prior = EmpiricalPrior(2, samples=given.numpy())
    z = prior.sample((4, 500), generator=torch.Generator().manual_seed(1))
    assert z.shape == (4, 500, 2)
    counts = (z.reshape(-1, 1, 2) == given).all(-1).sum(0)
    assert counts.sum() == 2_000
    assert 10 < counts.min() <= counts.max() < 80  # Binomial(2000, 1/50)
    again = lf.load(lf.save(prior, tmp_path / "prior"))
    assert torch.equal(
        again.sample(9, generator=torch.Generator().manual_seed(2)),
        prior.sample(9, generator=torch.Generator().manual_seed(2)),
    )


def test_a_density_with_two_modes_keeps_their_shares():
    """0.3 N(-4, 0.5^2) + 0.7 N(4, 0.5^2) in the plane, unnormalised: shares within 0.05, spreads within 10 %."""

    def log_density(z):
        low, high = (-((z - m).square().sum(-1)) / 0.5 for m in (-4.0, 4.0))
        return 123.0 + torch.logaddexp(low + torch.tensor(0.3).log(), high + torch.tensor(0.7).log())

    z = EmpiricalPrior.from_density(log_density, 2, n_samples=4_000, scale=6.0).samples
    right = z[:, 0] > 0
    assert right.float().mean().item() == pytest.approx(0.7, abs=0.05)
    assert z[right].mean(0).tolist() == pytest.approx([4.0, 4.0], abs=0.05)
    assert z[right].std(0).tolist() == pytest.approx([0.5, 0.5], rel=0.1)


def test_a_support_with_borders():
    log_square = lambda z: torch.where(((z > 0) & (z < 1)).all(-1), 0.0, -torch.inf)  # noqa: E731
    z = EmpiricalPrior.from_density(log_square, 2, n_samples=4_000, scale=2.0).samples
    assert ((z > 0) & (z < 1)).all()
    assert z.mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.03)
    assert z.var(0).tolist() == pytest.approx([1 / 12, 1 / 12], abs=0.005)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one"),
        ({"sampler": torch.randn, "samples": torch.zeros(3, 2)}, "exactly one"),
        ({"samples": torch.zeros(3, 4)}, r"\(3, 4\); expected \(n, 2\)"),
        ({"samples": torch.full((3, 2), torch.nan)}, "not finite"),
    ],
)
def test_other_targets_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        EmpiricalPrior(2, **arguments)


def test_a_density_that_is_nowhere_is_refused():
    with pytest.raises(InputError, match="give another scale"):
        EmpiricalPrior.from_density(lambda z: torch.full((len(z),), -torch.inf), 2, n_samples=100)
    with pytest.raises(InputError, match="log_density gave"):
        EmpiricalPrior.from_density(lambda z: z, 2, n_samples=100)


def test_without_a_density_log_p_x_is_not_proposed_in_place_of_the_gap():
    prior = EmpiricalPrior(2, samples=torch.randn(50, 2))
    codes = lf.evaluation.Codes.of(torch.zeros(9, 2), std=torch.ones(9, 2))
    with pytest.raises(CapabilityError, match="'empirical' has none, and no log p"):
        lf.evaluation.prior_gap(lf.priors.create("standard", latent_dim=2), prior, codes)
