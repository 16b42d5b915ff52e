"""How a mixture prior divides rows: exact where components are far apart, permuted by size, averaged over draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from latentfit import priors
from latentfit.errors import CapabilityError, InputError
from latentfit.evaluation import Codes, clusters, clusters_of, on_single_rows

CENTRES = torch.tensor([[-4.0, 0.0], [4.0, 0.0], [0.0, 5.0]])
SIZES = (100, 300, 200)


@pytest.fixture(scope="module")
def groups():
    label = torch.repeat_interleave(torch.arange(3), torch.tensor(SIZES))
    noise = torch.randn(len(label), 2, generator=torch.Generator().manual_seed(0))
    mean = CENTRES[label] + 0.3 * noise
    return Codes.of(mean, std=torch.full_like(mean, 0.3)), label.numpy()


@pytest.mark.parametrize(("name", "arguments"), [("mixture", {"n_components": 3}), ("dp_mixture", {})])
def test_groups_far_apart_are_found_the_largest_first(groups, name, arguments):
    codes, label = groups
    prior = priors.create(name, latent_dim=2, **arguments).fit(codes.mean, std=codes.std)
    found = clusters_of(prior, codes)
    assert found.shares.sum() == pytest.approx(1, abs=1e-6)
    assert (np.diff(found.shares) <= 0).all()
    np.testing.assert_allclose(found.shares[:3], np.array([300, 200, 100]) / 600, atol=0.01)
    torch.testing.assert_close(found.means[:3], CENTRES[[1, 2, 0]], atol=0.15, rtol=0)
    assert found.n_clusters == 3
    assert found.agreement(label) == pytest.approx(1, abs=1e-6)
    assert repr(found).startswith("Clusters(3 of at least 1 % of 600 rows: 50%, 33%, 17%")
    assert found.certainty.mean() > 0.99


def test_responsibilities_are_bayes_rule(groups):
    codes, _ = groups
    prior = priors.create("mixture", latent_dim=2, n_components=4, covariance="diagonal").fit(codes.mean, std=codes.std)
    z = codes.sample(3, torch.Generator().manual_seed(1))
    given = prior.responsibilities(z)
    assert given.shape == (3, len(codes), 4)
    torch.testing.assert_close(given.sum(-1), torch.ones(3, len(codes)))
    joint = prior.component_log_prob(z.flatten(0, 1)).view(3, -1, 4)
    torch.testing.assert_close(given.log().clamp_min(-30), (joint - prior.log_prob(z)[..., None]).clamp_min(-30))


def test_equal_shares_count_as_many(groups):
    codes, _ = groups
    prior = priors.create("mixture", latent_dim=2, n_components=1).fit(codes.mean, std=codes.std)
    found = clusters_of(prior, codes)
    assert found.effective == pytest.approx(1)
    assert found.agreement(np.zeros(len(codes))) == 1  # one group, one cluster


def test_a_defensive_mixture_is_divided_by_its_base(groups):
    codes, _ = groups
    base = priors.create("mixture", latent_dim=2, n_components=3).fit(codes.mean, std=codes.std)
    mixed = priors.DefensiveMixture(base, priors.create("standard", latent_dim=2), weight=0.5)
    np.testing.assert_array_equal(clusters_of(mixed, codes).members, clusters_of(base, codes).members)


def test_what_has_no_components_is_refused(groups):
    codes, _ = groups
    with pytest.raises(CapabilityError, match="standard has no components"):
        clusters_of(priors.create("standard", latent_dim=2), codes)
    found = clusters_of(priors.create("mixture", latent_dim=2), codes)
    with pytest.raises(InputError, match="5 for 600 rows"):
        found.agreement(np.zeros(5))


def exemplar(codes):
    return priors.create("exemplar", latent_dim=2).fit(codes.mean, std=codes.std)


def test_exemplars_are_components_and_all_of_them_are_rows(groups):
    codes, _ = groups
    prior = exemplar(codes)
    assert len(prior.component_means()) == len(codes)
    z = codes.sample(1, torch.Generator().manual_seed(1))[0]
    given = prior.responsibilities(z)
    torch.testing.assert_close(given.sum(-1), torch.ones(len(codes)))
    far = prior.component_means()[(z[0] - prior.component_means()).square().sum(-1).argmax()]
    assert given[0].argmax() == (z[0] - prior.component_means()).square().sum(-1).argmin()
    assert not torch.equal(far, prior.component_means()[given[0].argmax()])
    assert on_single_rows(prior, codes).all()
    mixed = priors.DefensiveMixture(prior, priors.create("standard", latent_dim=2), weight=0.5)
    assert on_single_rows(mixed, codes[:10]).all()  # by what they are, not by these rows


@pytest.mark.parametrize("seed", range(3))
def test_a_component_on_one_row_is_told_from_one_of_a_group(groups, seed):
    codes, _ = groups
    prior = priors.create("mixture", latent_dim=2, n_components=5, covariance="diagonal")
    prior.fit(codes.mean, std=codes.std, random_state=seed)
    assert not on_single_rows(prior, codes).any()
    with torch.no_grad():  # one is moved onto the code of a row, a group's widths kept: the distance tells
        prior.mean[3] = codes.mean[17]
    np.testing.assert_array_equal(on_single_rows(prior, codes), [False, False, False, True, False])
    with torch.no_grad():  # one is moved to a far row's neighbourhood, off its code: what it is made of tells
        outlier = torch.cat([codes.mean, torch.tensor([[40.0, 40.0]])])
        prior.mean[3] = torch.tensor([41.0, 40.0])
    more = Codes.of(outlier, std=torch.full_like(outlier, 0.3))
    assert on_single_rows(prior, more)[3]


def test_components_of_many_rows_are_no_rows_in_sixteen_dimensions():
    mean = torch.randn(2_000, 16, generator=torch.Generator().manual_seed(0))
    codes = Codes.of(mean, std=torch.full_like(mean, 0.2))
    prior = priors.create("mixture", latent_dim=16, n_components=20).fit(mean, std=codes.std)
    assert not on_single_rows(prior, codes).any()


def test_blocks_of_rows_change_nothing(groups, monkeypatch):
    codes, _ = groups
    prior = exemplar(codes)
    at_once, order = clusters_of(prior, codes, n_draws=1), []
    monkeypatch.setattr(clusters, "BLOCK_NUMBERS", 7 * len(codes))
    original = prior.responsibilities
    monkeypatch.setattr(prior, "responsibilities", lambda z: order.append(len(z)) or original(z))
    in_blocks = clusters_of(prior, codes, n_draws=1)
    assert max(order) == 7  # never more than seven rows of 600 responsibilities are held
    assert in_blocks.shares.sum() == pytest.approx(1, abs=1e-6)
    assert len(in_blocks.members) == len(codes)
    mixture = priors.create("mixture", latent_dim=2, n_components=3).fit(codes.mean, std=codes.std)
    monkeypatch.setattr(clusters, "BLOCK_NUMBERS", 50 * 3)
    np.testing.assert_array_equal(
        clusters_of(mixture, codes).members, clusters_of(mixture, codes, random_state=1).members
    )
    torch.testing.assert_close(at_once.means[0], prior.component_means()[at_once.order[0]])


def test_a_model_or_bare_means_are_told_what_to_give(groups) -> None:
    codes, _ = groups
    with pytest.raises(InputError, match=r"must be a prior, as in model\.prior; got Linear"):
        clusters_of(torch.nn.Linear(1, 1), codes)
    with pytest.raises(InputError, match=r"encode_rows\(model, X\), or Codes\.of\(mean, std=std\); got Tensor"):
        clusters_of(priors.create("mixture", latent_dim=2), codes.mean)
