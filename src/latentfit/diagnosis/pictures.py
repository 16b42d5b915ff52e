"""The arrays behind the pictures of one model's page: samples, reconstructions, holes, the map, the units."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentfit.diagnosis.material import Material, some_numbers
from latentfit.diagnosis.sections import MOST_CLUSTERED, SHOWN, Sections, cluster_pictures, empty
from latentfit.evaluation.codes import Codes
from latentfit.evaluation.collapse import ActiveUnits, active_units
from latentfit.evaluation.holes import Holes
from latentfit.evaluation.plane import worst_plane
from latentfit.evaluation.rows import frozen, to_numpy
from latentfit.model import Prior, VAEModule

#: codes and draws in the map, and rows of data beside them
DOTS, THUMBNAILS = 1_000, 400
#: draws that look for the worst direction
DRAWS = 2_000


@dataclass(frozen=True)
class Pictures(Sections):
    """Arrays that a page is drawn from, with those of `Sections`. "New" is what the fitted prior draws.

    Attributes:
        null_samples, new_samples, reconstructions, originals: (m, *data_shape), decoder means by the same noise, and
            the first rows they are to be compared with.
        hole_samples: (k, *data_shape), what the decoder makes of the first draws that lie in a hole.
        map_codes: (n, 2) codes in the plane of the worst direction and the first principal axis across it;
            map_null, map_new: (n, 2) draws of either prior.
        map_labels: (n,) of the rows; map_images: (k, *data_shape) the first rows.
        hole_codes, hole_null, hole_new: log r(z) of the codes and of draws of either prior; hole_line: the 1 %
            quantile of the former.
        unit_kl, unit_std: (D,) nats, and the standard deviation of the aggregate posterior.
    """

    null_samples: np.ndarray = field(default_factory=empty)
    new_samples: np.ndarray = field(default_factory=empty)
    reconstructions: np.ndarray = field(default_factory=empty)
    originals: np.ndarray = field(default_factory=empty)
    hole_samples: np.ndarray = field(default_factory=empty)
    map_codes: np.ndarray = field(default_factory=empty)
    map_null: np.ndarray = field(default_factory=empty)
    map_new: np.ndarray = field(default_factory=empty)
    map_labels: np.ndarray = field(default_factory=empty)
    map_images: np.ndarray = field(default_factory=empty)
    hole_codes: np.ndarray = field(default_factory=empty)
    hole_null: np.ndarray = field(default_factory=empty)
    hole_new: np.ndarray = field(default_factory=empty)
    hole_line: float | None = None
    unit_kl: np.ndarray = field(default_factory=empty)
    unit_std: np.ndarray = field(default_factory=empty)


@torch.no_grad()
def draw_pictures(
    material: Material,
    new: Prior | None,
    holes: Holes,
    new_holes: Holes | None,
    *,
    units: ActiveUnits | None = None,
    random_state: int = 0,
) -> Pictures:
    """The pictures of a model and its rows.

    Args:
        material: the model; its test rows are what is shown and encoded.
        new: the fitted prior, or None where there is none to be shown.
        holes, new_holes: of the model's prior and of the new one, by the same density.
        units: of the test codes, where they are known already.
        random_state: seed of the draws, the same for both priors.
    """
    codes, before = material.codes_test, material.subject.vae.prior
    units = active_units(codes) if units is None else units
    found = Pictures(
        hole_codes=holes.log_r_codes,
        hole_null=holes.log_r_samples,
        hole_new=empty() if new_holes is None else new_holes.log_r_samples,
        hole_line=holes.threshold,
        unit_kl=units.kl,
        unit_std=units.std,
    )
    found = replace(found, **_map(material, codes, before, new, random_state))
    mixed = new if new is not None and new.component_means() is not None else before
    rows = some_numbers(len(codes), MOST_CLUSTERED, random_state)
    labels = None if material.labels is None else material.labels[rows]
    train = material.codes_train if material.whole is None else material.whole
    found = replace(found, **cluster_pictures(material.subject.vae, mixed, codes[rows], train, labels, random_state))
    if material.subject.can_decode:
        found = replace(found, **_decoded(material, new, holes, random_state))
    return found


def _decoded(material: Material, new: Prior | None, holes: Holes, random_state: int) -> dict[str, Any]:
    """Decoder means of draws from both priors by the same noise, of the first rows, of draws in a hole."""
    vae = material.subject.vae
    shown = min(SHOWN, len(material.test))
    rows = material.test[slice(0, shown)].to(vae.device)
    found: dict[str, Any] = {}
    models: list[tuple[str, VAEModule]] = [("null_samples", vae)]
    if new is not None:
        models.append(("new_samples", vae.with_parts(prior=new)))
    with frozen(*(model for _, model in models), random_state=random_state):
        for name, model in models:
            generator = torch.Generator(device=vae.device).manual_seed(random_state)
            found[name] = _array(
                model.sample(shown, context=rows.context, observation_noise=False, generator=generator)
            )
        found["reconstructions"] = _array(vae.reconstruct(rows))
        found["originals"] = _array(rows.x)
        if holes.examples is not None and len(holes.examples) and rows.context is None:
            found["hole_samples"] = _array(vae.decode_mean(holes.examples.to(vae.device)))
    return found


def _map(material: Material, codes: Codes, before: Prior, new: Prior | None, random_state: int) -> dict[str, Any]:
    """Codes and draws in the plane in which they differ most."""
    rows = some_numbers(len(codes), DRAWS, random_state)
    picked = codes[rows]
    z = picked.sample(1, torch.Generator(device=codes.mean.device).manual_seed(random_state))[0]
    draws = {"map_null": _drawn(before, picked, random_state)}
    if new is not None:
        draws["map_new"] = _drawn(new, picked, random_state)
    plane = worst_plane(z, draws["map_null"], random_state=random_state)
    labels = material.labels
    return {
        "map_codes": plane.of(z[:DOTS]),
        **{name: plane.of(drawn[:DOTS]) for name, drawn in draws.items()},
        "map_labels": empty() if labels is None else labels[rows][:DOTS],
        "map_images": _array(material.test.x[torch.as_tensor(rows[:THUMBNAILS], device=material.test.x.device)]),
    }


def _drawn(prior: Prior, codes: Codes, random_state: int) -> Tensor:
    """DRAWS codes of a prior; of a conditional one, for the contexts of the rows in turn."""
    context = codes.context
    if context is not None:
        context = context[torch.arange(DRAWS, device=context.device) % len(context)]
    # the prior has the model's device, the codes may not
    device = next((t.device for t in (*prior.parameters(), *prior.buffers())), codes.mean.device)
    with frozen(prior):
        drawn = prior.sample(DRAWS, context, torch.Generator(device=device).manual_seed(random_state))
    return drawn.to(codes.mean)


def _array(values: Tensor) -> np.ndarray:
    return to_numpy(values).astype(np.float32)
