"""Priors p(z): one object to train with, to fit afterwards, and to drop into a model of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from latentfit import saving
from latentfit.errors import InputError
from latentfit.model.contracts import Prior, Shape, as_shape
from latentfit.priors.defensive import DefensiveMixture
from latentfit.priors.dp_mixture import DirichletProcessPrior
from latentfit.priors.empirical import EmpiricalPrior
from latentfit.priors.exemplar import ExemplarPrior
from latentfit.priors.external import ExternalPrior, as_prior
from latentfit.priors.flow import FlowPrior
from latentfit.priors.flow_matching import FlowMatchingPrior
from latentfit.priors.hierarchical import HierarchicalPrior
from latentfit.priors.learned_gaussian import LearnedGaussianPrior
from latentfit.priors.maf import MAFPrior
from latentfit.priors.mixture import MixturePrior
from latentfit.priors.nsf import NSFPrior
from latentfit.priors.realnvp import RealNVPPrior
from latentfit.priors.standard import StandardNormalPrior
from latentfit.priors.two_stage import TwoStagePrior
from latentfit.priors.vamp import VampPrior
from latentfit.registry import registry

registry.register("prior", "standard", StandardNormalPrior, aliases=("normal", "standard_normal", "n01"))
registry.register("prior", "learned_gaussian", LearnedGaussianPrior, aliases=("gaussian", "full_gaussian"))
registry.register("prior", "mixture", MixturePrior, aliases=("gmm", "mog", "gaussian_mixture"))
registry.register("prior", "vamp", VampPrior, synonyms=("vampprior", "vamp_prior"))
registry.register("prior", "exemplar", ExemplarPrior, synonyms=("exemplars",), aliases=("exemplar_vae",))
registry.register(
    "prior",
    "hierarchical",
    HierarchicalPrior,
    synonyms=("normal_inverse_wishart", "niw"),
    aliases=("normal_inverse_gamma", "nig", "full_bayes", "student_t_predictive"),
)
registry.register(
    "prior",
    "dp_mixture",
    DirichletProcessPrior,
    synonyms=("dpmm", "dirichlet_process"),
    aliases=("dp", "stick_breaking", "bayesian_gaussian_mixture"),
)
registry.register("prior", "realnvp", RealNVPPrior, aliases=("real_nvp", "affine_coupling", "coupling", "flow"))
registry.register("prior", "two_stage", TwoStagePrior, aliases=("twostage", "second_vae", "2svae", "two_stage_vae"))
registry.register("prior", "flow_matching", FlowMatchingPrior, aliases=("cfm", "rectified_flow", "fm", "diffusion"))
registry.register("prior", "realnvp", RealNVPPrior, aliases=("real_nvp", "affine_coupling", "coupling"))
registry.register("prior", "nsf", NSFPrior, synonyms=("rqs", "neural_spline", "spline"))
registry.register("prior", "maf", MAFPrior, aliases=("autoregressive", "made"))
registry.register("prior", "defensive", DefensiveMixture, aliases=("defensive_mixture",))
registry.register("prior", "empirical", EmpiricalPrior)


#: above it a spline coupling's K numbers per coordinate cost more than they win
MOST_SPLINE_DIMENSIONS = 64


def names() -> list[str]:
    """The names of all priors, from simple to rich."""
    return registry.names("prior")


def create(name: str, latent_dim: Shape | None = None, **arguments: Any) -> Prior:
    """A prior by name; its arguments are those of its class.

    Args:
        name: one of `names()`, or "flow" for the one that `flow_for` names.
        latent_dim: D, or a shape such as (C, H, W); a prior made of other priors takes theirs.
        **arguments: the class's other arguments.

    Raises:
        InputError: an unknown name or argument, with what is known.

    Example:
        >>> prior = create("mixture", latent_dim=2, n_components=5)
        >>> prior.sample(4).shape
        torch.Size([4, 2])
    """
    if latent_dim is not None:
        arguments["latent_dim"] = latent_dim
        name = flow_for(latent_dim) if name == "flow" else name
    prior: Prior = registry.create("prior", name, **arguments)
    return prior


def flow_for(latent_dim: Shape) -> str:
    """The flow to fit post hoc in so many dimensions: splines up to 64, above it affine couplings.

    Example:
        >>> flow_for(16), flow_for((4, 8, 8))
        ('nsf', 'realnvp')
    """
    return "nsf" if as_shape(latent_dim).numel() <= MOST_SPLINE_DIMENSIONS else "realnvp"


def load(directory: str | Path, *, map_location: str | torch.device = "cpu", **externals: Any) -> Prior:
    """The prior of a folder that `latentfit.save` wrote.

    Args:
        directory: the folder.
        map_location: the device.
        **externals: your own modules by the name config.json gives them.

    Raises:
        InputError: the folder holds something else, or a module of your own is needed and not given.
        SavedFileError: a missing or damaged file, another program's folder, or a newer format.
    """
    family = saving.read_config(directory)["family"]
    if family != "prior":
        raise InputError(f"{directory} holds a {family}, not a prior; latentfit.load(...) reads it.")
    prior: Prior = saving.load_component(directory, map_location=map_location, **externals)
    return prior


__all__ = [
    "DefensiveMixture",
    "DirichletProcessPrior",
    "EmpiricalPrior",
    "ExemplarPrior",
    "ExternalPrior",
    "FlowMatchingPrior",
    "FlowPrior",
    "HierarchicalPrior",
    "LearnedGaussianPrior",
    "MAFPrior",
    "MixturePrior",
    "NSFPrior",
    "Prior",
    "RealNVPPrior",
    "StandardNormalPrior",
    "TwoStagePrior",
    "VampPrior",
    "as_prior",
    "create",
    "flow_for",
    "load",
    "names",
]
