"""Saving and loading of whatever was fitted."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of
from sklearn.utils.validation import check_is_fitted
from torch import nn

from latentfit import saving
from latentfit.data.units import Units
from latentfit.errors import InputError, SavedFileError
from latentfit.estimator.vae import VAE, plain
from latentfit.evaluation.proposal import Proposal
from latentfit.model import VAEModule
from latentfit.model.stored import ESTIMATOR, estimator_entry


def save(obj: VAE | nn.Module, directory: str | Path, *, overwrite: bool = False) -> Path:
    """Save a fitted `VAE`, a `VAEModule` or a prior as a folder: config.json, model.safetensors, README.md.

    Args:
        obj: what to save. A user's own modules are stored by their weights and handed to `load` again.
        directory: the folder; it appears whole or not at all.
        overwrite: replace a folder saved earlier; any other folder that is not empty is never touched.

    Returns:
        The folder.

    Raises:
        InputError: not one of these, or the folder is taken.
        SavedFileError: it cannot be written.

    Example:
        >>> import tempfile, latentfit as lf
        >>> prior = lf.priors.create("mixture", latent_dim=2)
        >>> folder = lf.save(prior, tempfile.mkdtemp() + "/prior")
        >>> lf.load(folder).event_shape
        torch.Size([2])
    """
    from latentfit.report.card import card

    extra: dict[str, Any] = {}
    facts: dict[str, Any] = {"path": Path(directory).name}
    component: Any = obj
    if isinstance(obj, VAE):
        check_is_fitted(obj, "module_")
        component = obj.module_
        extra[ESTIMATOR] = _estimator_config(obj)
        facts |= {"seed": obj.seed_}
    if isinstance(component, VAEModule):
        likelihood = component.likelihood
        facts |= {"likelihood": likelihood.name, "base_measure": likelihood.base_measure}
        facts["latent_dim"] = component.event_shape.numel()
    elif getattr(component, "family", "") != "prior":
        raise InputError(f"save: got {type(obj).__name__}, expected a fitted VAE, a VAEModule or a prior.")
    facts["n_parameters"] = sum(p.numel() for p in component.parameters())
    facts["kind"] = "prior" if component.family == "prior" else "vae"
    text = card({"family": component.family, **component.config()}, facts)
    return saving.save_component(component, directory, overwrite=overwrite, card=text, extra=extra)


def load(directory: str | Path, *, map_location: str | torch.device = "cpu", **externals: Any) -> Any:
    """Load what `save` wrote: a `VAE`, a `VAEModule` or a prior. Nothing in the folder is executed.

    Args:
        directory: the folder.
        map_location: the device.
        externals: your own modules by their argument's name, `encoder=`, `decoder=`; their weights are loaded
            too.

    Raises:
        SavedFileError: a missing or damaged file, another program's folder, or a newer format.
        InputError: a module of your own is needed and not given.
    """
    component = saving.load_component(directory, map_location=map_location, **externals)
    stored = saving.read_config(directory).get(ESTIMATOR)
    if stored is None:
        return component
    try:
        return _estimator_from_json(stored, component)
    except (KeyError, TypeError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        detail = " ".join(str(error).split())[:160]
        path = Path(directory) / saving.CONFIG
        raise SavedFileError(f"{path} is damaged (its entry 'estimator': {detail}).") from error


def _estimator_config(vae: VAE) -> dict[str, Any]:
    """All that a fitted estimator is beside its module, as JSON."""
    params = {key: plain(value) for key, value in vae.get_params().items()}
    if not isinstance(vae.random_state, int | np.integer | None):
        params["random_state"] = vae.seed_
    return estimator_entry(
        params=params,
        units=vae._units.to_json(),
        likelihood=vae.likelihood_,
        notes=vae.notes_,
        feature_names=getattr(vae, "feature_names_in_", None),
        n_steps=vae.n_steps_,
        seed=vae.seed_,
        history=vae.history_,
        proposal=None if vae._proposal is None else _proposal_to_json(vae._proposal),
    )


def _estimator_from_json(stored: Mapping[str, Any], module: VAEModule) -> VAE:
    vae = VAE(**stored["params"])
    vae.module_, vae.likelihood_, vae.notes_ = module, stored["likelihood"], stored["notes"]
    vae.history_, vae.n_steps_, vae.seed_ = stored["history"], stored["n_steps"], stored["seed"]
    vae.n_features_in_, vae._units = stored["n_features_in"], Units.from_json(stored["units"])
    if stored["feature_names_in"] is not None:
        vae.feature_names_in_ = np.asarray(stored["feature_names_in"], dtype=object)
    proposal = stored["proposal"]
    vae._proposal = None if proposal is None else _proposal_from_json(proposal, module)
    return vae


def _proposal_to_json(proposal: Proposal) -> dict[str, Any]:
    # safetensors inside the JSON: exact also where a number is nan, which JSON does not know
    raw = bytes_of({key: value.cpu().contiguous() for key, value in proposal.state_dict().items()})
    return {
        "full": proposal.full,
        "wide_share": proposal.wide_share,
        "tensors": base64.b64encode(raw).decode("ascii"),
    }


def _proposal_from_json(stored: Mapping[str, Any], module: VAEModule) -> Proposal:
    proposal = Proposal(module.event_shape, full=stored["full"], wide_share=stored["wide_share"])
    proposal.load_state_dict(tensors_of(base64.b64decode(stored["tensors"], validate=True)))
    return proposal.to(module.device).eval().requires_grad_(False)
