"""MMD against brute force in float64, its gradient, and the level and power of its test."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from latentfit.divergences import energy_distance, mmd, mmd2, mmd_test
from latentfit.divergences.kernels import Kernel
from latentfit.divergences.mmd import mmd2_with_gradient
from latentfit.errors import InputError

from .conftest import normal


def value_of(kernel, distance, h):
    if kernel == "rbf":
        return (-(distance**2) / (2 * h**2)).exp()
    return 1 / (1 + distance**2 / (2 * h**2)) if kernel == "imq" else -distance


def brute_force(a, b, bandwidths, kernel="rbf", unbiased=True):
    """The definition, with float64 differences."""
    a, b = a.double(), b.double()
    n, m = len(a), len(b)
    total = 0.0
    for h in bandwidths:
        xx, yy, xy = (
            value_of(kernel, (x[:, None] - y).square().sum(-1).sqrt(), h) for x, y in ((a, a), (b, b), (a, b))
        )
        if unbiased:
            within = (xx.sum() - xx.trace()) / (n * (n - 1)) + (yy.sum() - yy.trace()) / (m * (m - 1))
        else:
            within = xx.mean() + yy.mean()
        total += (within - 2 * xy.mean()).item() / len(bandwidths)
    return total


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("kernel", ["rbf", "imq", "energy"])
@pytest.mark.parametrize("offset", [0.0, 1_000.0])
@pytest.mark.parametrize(("n", "m"), [(300, 200), (1_200, 900)], ids=["float64", "float32, blocks"])
def test_is_the_definition_also_far_from_the_origin(n, m, offset, kernel, unbiased):
    a, b = normal(n, 6, 0, offset), normal(m, 6, 1, offset + 0.3)
    bandwidths = [1.0] if kernel == "energy" else [3.0, 2.0, math.sqrt(2), 1.1]
    given = None if kernel == "energy" else bandwidths
    wanted = brute_force(a, b, bandwidths, kernel, unbiased)
    assert mmd2(a, b, given, kernel=kernel, unbiased=unbiased) == pytest.approx(wanted, rel=1e-6)


def test_arrays_give_the_same_number():
    a, b = normal(60, 3, 0), normal(50, 3, 1, 0.5)
    assert mmd2(a.numpy(), b.numpy(), 1.0) == mmd2(a, b, 1.0)
    assert isinstance(mmd2(a.numpy(), b.numpy()), float)


def test_blocks_do_not_change_the_value(monkeypatch):
    a, b = normal(130, 3, 0), normal(70, 3, 1, 0.5)
    whole = mmd2(a, b, [2.0, 1.0])
    monkeypatch.setattr(mmd, "BLOCK", 32)
    assert mmd2(a, b, [2.0, 1.0]) == pytest.approx(whole, rel=1e-12)


def test_the_default_bandwidths_follow_the_scale():
    a, b = normal(200, 3, 0, dtype=torch.float64), normal(200, 3, 1, 1.0, dtype=torch.float64)
    assert mmd2(100 * a, 100 * b) == pytest.approx(mmd2(a, b), rel=1e-9)


def test_is_unbiased_and_the_other_is_never_negative():
    """Mean over 400 pairs of equal samples within 4 standard errors of 0."""
    values = [mmd2(normal(20, 2, 2 * i), normal(20, 2, 2 * i + 1), 1.0) for i in range(400)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 20
    assert min(values) < 0
    assert mmd2(normal(20, 2, 0), normal(20, 2, 1), 1.0, unbiased=False) > 0


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("kernel", ["rbf", "imq", "energy"])
def test_the_gradient_is_that_of_the_definition(monkeypatch, kernel, unbiased):
    monkeypatch.setattr(mmd, "BLOCK", 7)
    z, t = normal(20, 3, 0, dtype=torch.float64).requires_grad_(), normal(15, 3, 1, 0.5, dtype=torch.float64)
    bandwidths = (1.0,) if kernel == "energy" else (2.0, 0.8)
    chosen = Kernel.of(kernel, bandwidths)
    value = mmd2_with_gradient(z, t, chosen, unbiased)
    assert value.item() == pytest.approx(brute_force(z.detach(), t, bandwidths, kernel, unbiased), rel=1e-9)
    assert torch.autograd.gradcheck(lambda x: mmd2_with_gradient(x, t, chosen, unbiased), z)


def test_energy_distance_is_scipys():
    from scipy.stats import energy_distance as theirs

    a, b = normal(50, 1, 0), normal(70, 1, 1, 0.4)
    ours = energy_distance(a, b, unbiased=False)
    assert ours == pytest.approx(theirs(a.flatten().numpy(), b.flatten().numpy()) ** 2, rel=1e-6)


# the permutation test


def permuted_by_hand(a, b, bandwidths, labels):
    pooled = torch.cat([a, b])
    return [mmd2(pooled[row == 1], pooled[row == -1], bandwidths) for row in labels]


@pytest.mark.parametrize("n", [40, 25])
def test_permuted_values_are_those_of_the_permuted_samples(monkeypatch, n):
    monkeypatch.setattr(mmd, "BLOCK", 16)
    a, b = normal(n, 2, 0, dtype=torch.float64), normal(40, 2, 1, 0.3, dtype=torch.float64)
    x, y = mmd._centred(a, b)
    labels = mmd._labels(len(a), len(b), 5, 0)
    assert (labels.sum(1) == n - 40).all()
    ours = mmd._permuted(Kernel.of("rbf", [1.0, 0.3]), torch.cat([x, y]), labels, n)
    for values, h in zip(ours, (1.0, 0.3), strict=True):
        assert values.tolist() == pytest.approx(permuted_by_hand(a, b, h, labels), rel=1e-9)


def test_a_small_sample_has_its_p_value_by_enumeration():
    """With one bandwidth, the share of random labellings whose MMD is at least the observed."""
    a, b = normal(6, 1, 0, dtype=torch.float64), normal(5, 1, 1, 1.0, dtype=torch.float64)
    found = mmd_test(a, b, 1.0, n_permutations=300, random_state=3)
    values = permuted_by_hand(a, b, 1.0, mmd._labels(6, 5, 300, 3))
    assert found.statistic == pytest.approx(values[0], rel=1e-9)
    assert found.p_value == pytest.approx(np.mean(np.array(values) >= values[0] - 1e-12), abs=1e-9)


def rejections(repeats, make, level=0.05):
    return sum(mmd_test(*make(i), n_permutations=99, random_state=i).p_value <= level for i in range(repeats))


def test_the_level_holds_on_500_nulls():
    """Binomial(500, 0.05) is within 11 and 43 with probability 0.9995; 20 rows of a skewed law against 30."""
    found = rejections(500, lambda i: (normal(20, 2, 2 * i).exp(), normal(30, 2, 2 * i + 1).exp()))
    assert 11 <= found <= 43


def test_ties_of_several_bandwidths_do_not_lower_the_level():
    """Binomial(400, 0.05) is within 8 and 36 with probability 0.999; of 20, several share the least p-value."""
    found = sum(
        mmd_test(normal(20, 2, 2 * i), normal(20, 2, 2 * i + 1), n_permutations=19, random_state=i).p_value <= 0.05
        for i in range(400)
    )
    assert 8 <= found <= 36


def test_it_sees_a_small_scale_without_being_told():
    """A fine comb on the uniform: one wide bandwidth is blind to it, the aggregated test is not."""
    generator = torch.Generator().manual_seed(0)

    def comb(n):
        x = torch.rand(20 * n, 1, generator=generator)
        return x[torch.rand(20 * n, generator=generator) < 0.5 * (1 + torch.cos(10 * math.pi * x[:, 0]))][:n]

    a, b = comb(800), torch.rand(800, 1, generator=generator)
    assert mmd_test(a, b, [0.02, 0.2, 1.0], n_permutations=199).p_value <= 0.01
    assert mmd_test(a, b, 1.0, n_permutations=199).p_value > 0.05


def test_it_draws_from_its_own_generator():
    a, b = normal(20, 2, 0), normal(20, 2, 1)
    before = torch.get_rng_state()
    assert mmd_test(a, b, random_state=1) == mmd_test(a, b, random_state=1)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bandwidths": 0.0}, "positive"),
        ({"bandwidths": []}, "positive"),
        ({"kernel": "gauss"}, "'rbf', 'imq' or 'energy'"),
        ({"kernel": "energy", "bandwidths": 1.0}, "no bandwidth"),
    ],
)
def test_impossible_kernels_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        mmd2(normal(5, 2, 0), normal(5, 2, 1), **arguments)


def test_wrong_shapes_are_named():
    with pytest.raises(InputError, match="mmd2 needs two samples"):
        mmd2(normal(5, 2, 0), normal(5, 3, 1))
    with pytest.raises(InputError, match="not finite"):
        mmd2(normal(5, 2, 0), torch.full((5, 2), torch.nan))
    with pytest.raises(InputError, match="at least 1, got 0"):
        mmd_test(normal(5, 2, 0), normal(5, 2, 1), n_permutations=0)
