"""The arrays that a retrofit's report draws: samples before and after, the map of the codes, holes."""

from __future__ import annotations

import numpy as np
import torch

from latentfit.diagnosis.material import Material
from latentfit.evaluation.codes import Codes
from latentfit.evaluation.rows import frozen
from latentfit.model import Prior, VAEModule

#: samples in a grid, dots in the map
SHOWN, DOTS = 36, 1_000


@torch.no_grad()
def draw(material: Material, after: VAEModule, codes: Codes, random_state: int) -> dict[str, np.ndarray]:
    """Decoder means of draws from both priors by the same noise, reconstructions, and both in the codes' plane."""
    before = material.subject.vae
    shown = min(SHOWN, len(material.test))
    rows = material.test[slice(0, shown)].to(before.device)
    found: dict[str, np.ndarray] = {}
    with frozen(before, after, random_state=random_state):
        for name, vae in (("null_samples", before), ("new_samples", after)):
            generator = torch.Generator(device=vae.device).manual_seed(random_state)
            found[name] = _array(vae.sample(shown, context=rows.context, observation_noise=False, generator=generator))
        found["reconstructions"] = _array(before.reconstruct(rows))
        found["originals"] = _array(rows.x)
    return found | latent_map(codes, before.prior, after.prior, random_state)


@torch.no_grad()
def latent_map(codes: Codes, before: Prior, after: Prior, random_state: int) -> dict[str, np.ndarray]:
    """Codes and draws of both priors in the plane of the codes' first two principal axes: each (n, 2)."""
    z = codes.sample(1, torch.Generator(device=codes.mean.device).manual_seed(random_state))[0].flatten(1)[:DOTS]
    center = z.mean(0)
    axes = torch.linalg.svd(z - center, full_matrices=False).Vh[:2].T  # (D, 2)
    found = {"map_codes": _array((z - center) @ axes)}
    for name, prior in (("map_null", before), ("map_new", after)):
        context = None if codes.context is None else codes.context[torch.arange(len(z)) % len(codes)]
        generator = torch.Generator(device=codes.mean.device).manual_seed(random_state)
        with frozen(prior):
            drawn = prior.sample(len(z), context, generator).flatten(1).to(z)
        found[name] = _array((drawn - center) @ axes)
    return found


def _array(values: torch.Tensor) -> np.ndarray:
    return values.detach().cpu().float().numpy()
