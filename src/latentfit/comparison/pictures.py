"""The arrays behind a comparison's figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentfit.comparison.found import Found
from latentfit.comparison.jobs import some
from latentfit.comparison.result import Pictures
from latentfit.diagnosis.sections import BAND_ROWS, MOST_CLUSTERED, band_pictures, cluster_pictures
from latentfit.evaluation.holes import Holes
from latentfit.model import VAEModule

N_PICTURES = 36
N_MAP = 400


def draw_pictures(found: Found, keys: Sequence[str], key: str, holes: tuple[Holes, Holes], show_data: bool) -> Pictures:
    """The arrays behind the figures, first seed: of the N(0, I) model and of the row `key`; `keys` are best first."""
    data, rows, labels = found.data, found.rows, found.labels
    null, best = found.model("standard", 0), found.model(key, 0)
    before, after = holes
    seed = found.seed
    test = data.scoring_batch(some(rows["test"], N_PICTURES, seed))
    shown = some(rows["selection"], N_MAP, seed)
    codes = found.codes(null, "selection", N_MAP)

    def draw(vae: VAEModule) -> np.ndarray:
        with torch.no_grad():
            x = vae.sample(N_PICTURES, observation_noise=False, generator=torch.Generator().manual_seed(seed))
        return x.numpy()

    def prior_codes(prior: Any, n: int) -> Tensor:
        with torch.no_grad():
            return prior.sample(n, generator=torch.Generator().manual_seed(seed)).flatten(1)

    z = codes.sample(1, torch.Generator().manual_seed(seed))[0].flatten(1)
    axes = torch.linalg.svd(z - z.mean(0), full_matrices=False).Vh[:2].T  # (D, 2): principal plane of the codes
    # a jointly trained model has other coordinates: its own prior is shown only where the encoder is the same
    shown_prior = best.prior if key.endswith("@standard") else found.model(found.best_rung, 0).prior
    with torch.no_grad():
        reconstructions = null.reconstruct(test) if key.endswith("@standard") else best.reconstruct(test)
    return Pictures(
        null_samples=draw(null),
        best_samples=draw(best),
        reconstructions=reconstructions.numpy(),
        originals=test.x.numpy() if show_data else np.empty((0,)),
        unit_kl={k: np.mean([a["unit_kl"] for a in found.arrays[k]], 0) for k in dict.fromkeys(["standard", key])},
        unit_std={k: np.mean([a["unit_std"] for a in found.arrays[k]], 0) for k in dict.fromkeys(["standard", key])},
        curves={
            k: [
                {"step": h["step"], "validation": h["validation"]}
                for h in found.facts[k][0]["history"]
                if h.get("validation") is not None
            ]
            for k in found.keys
            if "history" in found.facts[k][0]
        },
        map_codes=(z @ axes).numpy(),
        map_null=(prior_codes(null.prior, N_MAP) @ axes).numpy(),
        map_best=(prior_codes(shown_prior, N_MAP) @ axes).numpy(),
        map_labels=np.empty(0) if labels is None else labels[shown].numpy(),
        map_images=data.x[shown].numpy() if show_data else np.empty(0),
        map_axes=("1", "2"),
        **_clusters(found, [key, *keys]),
        **_bands(found, [key, *keys]),
        hole_codes=before.log_r_codes,
        hole_null=before.log_r_samples,
        # judged by the same density only where the codes are the same
        hole_best=after.log_r_samples if key.endswith("@standard") else np.empty(0),
    )


def _clusters(found: Found, keys: Sequence[str]) -> dict[str, Any]:
    """Of the first of these rows whose prior has components, the recommended one or one that has fewer than rows."""
    for key in keys:
        vae = found.model(key, 0)
        if vae.prior.component_means() is not None and (key == keys[0] or not vae.prior.of_rows):
            rows = some(found.rows["selection"], MOST_CLUSTERED, found.seed)
            labels = None if found.labels is None else found.labels[rows].numpy()
            codes, train = found.codes(vae, "selection", MOST_CLUSTERED), found.codes(vae, "train")
            return cluster_pictures(vae, vae.prior, codes, train, labels, found.seed)
    return {}


def _bands(found: Found, keys: Sequence[str]) -> dict[str, Any]:
    """Of the first of these rows whose weights are uncertain."""
    for key in keys:
        vae = found.model(key, 0)
        if vae.n_draws > 1:
            rows = found.data.scoring_batch(some(found.rows["selection"], BAND_ROWS, found.seed))
            kl = np.mean([arrays["unit_kl"] for arrays in found.arrays[key]], 0)
            return band_pictures(vae, rows, kl, key.split("@")[0], found.seed)
    return {}
