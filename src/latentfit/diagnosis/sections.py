"""Two sections that all pages share: how a mixture prior divides the rows, what uncertain weights leave open."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from latentfit.adapters.decoding import NoDecoder
from latentfit.data.batch import Batch
from latentfit.errors import CapabilityError
from latentfit.evaluation.clusters import clusters_of, on_single_rows
from latentfit.evaluation.codes import Codes
from latentfit.evaluation.rows import frozen, to_numpy
from latentfit.evaluation.uncertainty import latent_distribution, latent_invariants
from latentfit.model import Prior, VAEModule
from latentfit.priors import DefensiveMixture

#: means of components that are decoded; rows whose clusters are counted
SHOWN, MOST_CLUSTERED = 36, 2_000
#: rows, gradient steps for each, and latent units of the bands
BAND_ROWS, BAND_STEPS, BAND_UNITS = 200, 50, 5
#: rows below which a prior gap cannot be cross-fitted
FEWEST_ROWS = 20


def empty() -> np.ndarray:
    """In place of what there is nothing of."""
    return np.empty(0)


@dataclass(frozen=True, kw_only=True)
class Sections:
    """Arrays of two sections that a page of one model and that of a comparison share; every one may be empty.

    Attributes:
        cluster_prior: the name of a prior with components, "" where none has; cluster_samples: (m, *data_shape) its
            largest components' means, decoded; cluster_shares: (K,) of the rows, falling; cluster_members,
            cluster_certainty, cluster_labels: (n,) of rows, see `latentfit.evaluation.Clusters`; cluster_on_rows:
            (K,) which of them stand on a single training row, so that their decoded mean shows it.
        band_units: (U,) latent units of which band_grid, band_low, band_high (U, P) show the marginal density of q(z)
            over draws of the weights; weight_gaps, weight_units: (M,) prior gap and active units of each draw;
            weight_share: (2,) epistemic share of the variance of z given x, and nats. Of `weight_method`, whose
            weights have a distribution.
    """

    cluster_prior: str = ""
    cluster_samples: np.ndarray = field(default_factory=empty)
    cluster_shares: np.ndarray = field(default_factory=empty)
    cluster_members: np.ndarray = field(default_factory=empty)
    cluster_certainty: np.ndarray = field(default_factory=empty)
    cluster_labels: np.ndarray = field(default_factory=empty)
    cluster_on_rows: np.ndarray = field(default_factory=empty)
    band_units: np.ndarray = field(default_factory=empty)
    band_grid: np.ndarray = field(default_factory=empty)
    band_low: np.ndarray = field(default_factory=empty)
    band_high: np.ndarray = field(default_factory=empty)
    weight_gaps: np.ndarray = field(default_factory=empty)
    weight_units: np.ndarray = field(default_factory=empty)
    weight_share: np.ndarray = field(default_factory=empty)
    weight_method: str = ""


def cluster_pictures(
    vae: VAEModule, prior: Prior, codes: Codes, train: Codes, labels: np.ndarray | None, random_state: int
) -> dict[str, Any]:
    """How a mixture prior divides some rows, and its components' means decoded; nothing of any other prior.

    `train` are codes of the rows that the prior may have been fitted to: they tell which means would show one of them.
    """
    if prior.component_means() is None:
        return {}
    found = clusters_of(prior, codes, random_state=random_state)
    facts: dict[str, Any] = {
        "cluster_prior": name_of(prior),
        "cluster_shares": found.shares,
        "cluster_members": found.members,
        "cluster_certainty": found.certainty,
        "cluster_on_rows": on_single_rows(prior, train, random_state=random_state)[found.order],
    }
    if labels is not None:
        facts["cluster_labels"] = np.asarray(labels)
    if not isinstance(vae.decoder, NoDecoder) and not vae.conditional:
        with frozen(vae, random_state=random_state):
            facts["cluster_samples"] = to_numpy(vae.decode_mean(found.means[:SHOWN].to(vae.device))).astype(np.float32)
    return facts


def name_of(prior: Prior) -> str:
    """What tables call it: a defensive mixture by its base."""
    return name_of(prior.base) if isinstance(prior, DefensiveMixture) else prior.name or type(prior).__name__


def band_pictures(vae: VAEModule, rows: Batch, unit_kl: np.ndarray, name: str, random_state: int) -> dict[str, Any]:
    """What the weights of a VAE leave open about the latents; nothing where they are certain.

    Args:
        vae: whose weights have a distribution. Bands need flat latents and a prior without a context.
        rows: at most `BAND_ROWS`, which no weight was trained on.
        unit_kl: (D,) nats; the units that carry most are shown.
        name: what the page calls it.
        random_state: of the draws.
    """
    if vae.n_draws < 2 or len(vae.event_shape) != 1 or vae.prior.context_features or len(rows) < FEWEST_ROWS:
        return {}
    options: dict[str, Any] = {"refinement_steps": BAND_STEPS, "random_state": random_state}
    apart = latent_invariants(vae, rows, **options)
    shown: dict[str, Any] = {"weight_gaps": apart.prior_gap, "weight_units": apart.active_units, "weight_method": name}
    try:
        latents = latent_distribution(vae, rows, **options)
    except CapabilityError:  # encoders of their own share no coordinates
        return shown
    units = np.argsort(-unit_kl.reshape(-1))[:BAND_UNITS]
    low, high = latents.band()
    return shown | {
        "band_units": units,
        "band_grid": latents.grid[units],
        "band_low": low[units],
        "band_high": high[units],
        "weight_share": np.array([latents.share, latents.information.mean()]),
    }
