"""What a saved folder holds of a fitted estimator beside its module."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

#: the entry of config.json with which `lf.load` gives a fitted `lf.VAE`; a module saved alone has none
ESTIMATOR = "estimator"


def estimator_entry(
    *,
    params: Mapping[str, Any],
    units: Mapping[str, Any],
    likelihood: Mapping[str, Any],
    notes: list[str],
    feature_names: Sequence[Any] | None,
    n_steps: int,
    seed: int,
    history: list[dict[str, Any]],
    proposal: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The entry `ESTIMATOR`, whoever trained the module: `lf.VAE` itself or a comparison.

    Args:
        params: of the estimator's constructor; those left out take their defaults.
        units: `Units.to_json()`.
        likelihood, notes, n_steps, seed, history: its attributes of these names.
        feature_names: of a table's columns as the user has them, or None.
        proposal: the stored evaluation proposal, or None: rows are then scored from the encoder's.
    """
    return {
        "params": params,
        "units": units,
        "likelihood": likelihood,
        "notes": notes,
        "n_features_in": math.prod(units["data_shape"]),
        "feature_names_in": None if feature_names is None else [str(name) for name in feature_names],
        "n_steps": n_steps,
        "seed": seed,
        "history": history,
        "proposal": proposal,
    }
