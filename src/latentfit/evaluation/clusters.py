"""Rows as the components of a mixture prior divide them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from latentfit.errors import CapabilityError, InputError
from latentfit.evaluation.codes import Codes
from latentfit.model.contracts import Prior

#: rows whose responsibilities are held at once
BLOCK = 4_096
#: components with less of the rows are left out of `n_clusters`
LEAST_SHARE = 0.01


@dataclass(frozen=True)
class Clusters:
    r"""p(k given x) = E_{q(z given x)} p(k given z), the components sorted by their share of the rows.

    Attributes:
        means: (K, *event_shape) of the components.
        shares: (K,) mean of p(k given x) over rows, falling; they sum to 1.
        members: (N,) the likeliest component of each row.
        certainty: (N,) its probability.
    """

    means: Tensor
    shares: np.ndarray
    members: np.ndarray
    certainty: np.ndarray

    @property
    def n_clusters(self) -> int:
        """Components with at least 1 % of the rows."""
        return int((self.shares >= LEAST_SHARE).sum())

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
        prior: one with `component_means`: mixture, dp_mixture, vamp.
        codes: of rows of this prior's model, or those the prior was fitted to.
        n_draws: of z for each row.
        random_state: of the draws.

    Raises:
        CapabilityError: a prior without components.

    Example:
        >>> from latentfit import priors
        >>> mean = torch.tensor([-3.0, 3.0, 3.0])[torch.arange(90) % 3][:, None] + 0.1 * torch.randn(90, 1)
        >>> prior = priors.create("mixture", latent_dim=1, n_components=2).fit(mean, std=torch.ones(90, 1) / 9)
        >>> found = clusters_of(prior, Codes.of(mean, std=torch.ones(90, 1) / 9))
        >>> [round(float(share), 2) for share in found.shares], len(set(found.members[::3]))
        ([0.67, 0.33], 1)
    """
    means = prior.component_means()
    if means is None:
        raise CapabilityError(
            f"{prior.name or type(prior).__name__} has no components; mixture, dp_mixture, vamp have."
        )
    generator = torch.Generator(device=codes.mean.device).manual_seed(random_state)
    blocks = []
    for start in range(0, len(codes), BLOCK):
        z = codes[slice(start, start + BLOCK)].sample(n_draws, generator)  # (S, R, *event_shape)
        blocks.append(torch.stack([prior.responsibilities(draw) for draw in z]).mean(0).cpu())
    given = torch.cat(blocks)  # (N, K)
    shares = given.double().mean(0)
    order = shares.argsort(descending=True)
    certainty, members = given[:, order].max(1)
    return Clusters(means[order.to(means.device)], shares[order].numpy(), members.numpy(), certainty.numpy())
