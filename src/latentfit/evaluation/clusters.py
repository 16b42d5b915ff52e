"""Rows as the components of a mixture prior divide them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from latentfit.errors import CapabilityError, InputError
from latentfit.evaluation.codes import Codes
from latentfit.evaluation.neighbours import nearest
from latentfit.evaluation.rows import blocks
from latentfit.model.contracts import Prior

#: responsibilities held at once, 16 MB in float32
BLOCK_NUMBERS = 4_000_000
#: components with less of the rows are left out of `n_clusters`
LEAST_SHARE = 0.01
#: a component stands on one row where that row's code is nearer than this share of the usual distance between
#: neighbouring codes, or where fewer rows than these make it up
NEAR, FEWEST_ROWS = 0.1, 5.0
#: codes by which that distance is told
SPACED = 2_000


@dataclass(frozen=True)
class Clusters:
    r"""p(k given x) = E_{q(z given x)} p(k given z), the components sorted by their share of the rows.

    Attributes:
        means: (K, *event_shape) of the components.
        shares: (K,) mean of p(k given x) over rows, falling; they sum to 1.
        members: (N,) the likeliest component of each row.
        certainty: (N,) its probability.
        order: (K,) the prior's numbers of these components.
    """

    means: Tensor
    shares: np.ndarray
    members: np.ndarray
    certainty: np.ndarray
    order: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=int))

    @property
    def n_clusters(self) -> int:
        """Components with at least 1 % of the rows."""
        return int((self.shares >= LEAST_SHARE).sum())

    def __repr__(self) -> str:
        largest = ", ".join(f"{share:.0%}" for share in self.shares[:6]) + ", .." * (len(self.shares) > 6)
        return f"Clusters({self.n_clusters} of at least 1 % of {len(self.members):,} rows: {largest})"

    @property
    def effective(self) -> float:
        """exp(entropy of the shares): as many components of equal size."""
        some = self.shares[self.shares > 0]
        return float(np.exp(-(some * np.log(some)).sum()))

    def agreement(self, labels: np.ndarray) -> float:
        """Adjusted Rand index of members and labels (N,): 1 is agreement, 0 chance.

        Source: Hubert & Arabie (1985), Journal of Classification 2.

        Raises:
            InputError: not one label for each row.
        """
        from sklearn.metrics import adjusted_rand_score

        if len(labels) != len(self.members):
            raise InputError(f"labels: {len(labels)} for {len(self.members)} rows; they must agree.")
        return float(adjusted_rand_score(labels, self.members))


@torch.no_grad()
def clusters_of(prior: Prior, codes: Codes, *, n_draws: int = 4, random_state: int = 0) -> Clusters:
    """How the components of a mixture prior divide the rows of these codes; see `Clusters`.

    Args:
        prior: one with `component_means`: mixture, dp_mixture, vamp, exemplar.
        codes: of rows of this prior's model, or those the prior was fitted to.
        n_draws: of z for each row.
        random_state: of the draws.

    Raises:
        CapabilityError: a prior without components.
        InputError: a model instead of its prior, or means without their spread.

    Example:
        >>> from latentfit import priors
        >>> mean = torch.tensor([-3.0, 3.0, 3.0])[torch.arange(90) % 3][:, None] + 0.1 * torch.randn(90, 1)
        >>> prior = priors.create("mixture", latent_dim=1, n_components=2).fit(mean, std=torch.ones(90, 1) / 9)
        >>> found = clusters_of(prior, Codes.of(mean, std=torch.ones(90, 1) / 9))
        >>> [round(float(share), 2) for share in found.shares], len(set(found.members[::3]))
        ([0.67, 0.33], 1)
    """
    if not isinstance(prior, Prior):
        raise InputError(
            f"clusters_of: the first argument must be a prior, as in model.prior; got {type(prior).__name__}."
        )
    if not isinstance(codes, Codes):
        raise InputError(
            "clusters_of: codes must be those of latentfit.evaluation.encode_rows(model, X), or "
            f"Codes.of(mean, std=std); got {type(codes).__name__}."
        )
    means = _means(prior)
    generator = torch.Generator(device=codes.mean.device).manual_seed(random_state)
    total, likeliest = torch.zeros(len(means), dtype=torch.float64), []
    for given in _blocks(prior, codes, len(means), n_draws, generator):
        total += given.sum(0, dtype=torch.float64)
        likeliest.append(given.max(1))
    certainty, members = (torch.cat(parts) for parts in zip(*likeliest, strict=True))
    shares, order = (total / len(codes)).sort(descending=True)
    members = order.argsort()[members]  # the prior's number -> the place by size
    return Clusters(means[order.to(means.device)], shares.numpy(), members.numpy(), certainty.numpy(), order.numpy())


@torch.no_grad()
def on_single_rows(prior: Prior, codes: Codes, *, random_state: int = 0) -> np.ndarray:
    r"""(K,) which components stand on (nearly) a single row of these codes, so that decoding their means shows it.

    All of a prior whose components are rows (`Prior.of_rows`: exemplar, vamp). Of another one those whose mean is
    nearer to a code than a tenth of the median distance of a code to its nearest neighbour, and those made up of
    fewer than five rows, (sum_n r_nk)^2 / sum_n r_nk^2 with r_nk = p(k given z_n).

    Args:
        prior: one with `component_means`.
        codes: of the rows that the prior was fitted or trained on, all of them: a row that is left out is not seen.
        random_state: of the draws z_n.

    Raises:
        CapabilityError: a prior without components.

    Example:
        >>> from latentfit import priors
        >>> mean = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
        >>> codes = Codes.of(mean, std=0.1 * torch.ones(100, 2))
        >>> few, many = (priors.create("mixture", latent_dim=2, n_components=k) for k in (1, 80))
        >>> [round(on_single_rows(prior.fit(mean, std=codes.std), codes).mean()) for prior in (few, many)]
        [0, 1]
    """
    means = _means(prior).flatten(1)
    if prior.of_rows:
        return np.ones(len(means), dtype=bool)
    points = codes.mean.flatten(1).to(means)
    distance = nearest(means, points)[0][:, 0]
    some = torch.randperm(len(points), generator=torch.Generator().manual_seed(random_state))[:SPACED]
    spacing = nearest(points[some.to(points.device)], points, k=2)[0][:, 1].median()  # the first is the code itself
    generator = torch.Generator(device=codes.mean.device).manual_seed(random_state)
    first, second = torch.zeros(2, len(means), dtype=torch.float64)
    for given in _blocks(prior, codes, len(means), 1, generator):
        first += given.sum(0, dtype=torch.float64)
        second += given.double().square().sum(0)
    n_rows = first.square() / second.clamp_min(1e-300)
    near: np.ndarray = (distance <= NEAR * spacing).cpu().numpy()
    return near | (n_rows < FEWEST_ROWS).numpy()


def _means(prior: Prior) -> Tensor:
    means = prior.component_means()
    if means is None:
        raise CapabilityError(
            f"{prior.name or type(prior).__name__} has no components; mixture, dp_mixture, vamp, exemplar have."
        )
    return means


def _blocks(
    prior: Prior, codes: Codes, n_components: int, n_draws: int, generator: torch.Generator
) -> Iterator[Tensor]:
    """p(k given x) of some rows after others, averaged over draws of z: (R, K), on the CPU."""
    for rows in blocks(len(codes), max(1, BLOCK_NUMBERS // n_components)):
        z = codes[rows].sample(n_draws, generator)  # (S, R, *event_shape)
        given = prior.responsibilities(z[0])
        for draw in z[1:]:
            given = given + prior.responsibilities(draw)
        yield (given / n_draws).cpu()
