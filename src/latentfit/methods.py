"""The named recipes: which prior, posterior, objective and weights a name stands for.

A method is a row of a table, not a class: composing the five families gives everything else.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from latentfit.data.transforms import Transform
from latentfit.errors import CapabilityError, DataWarning, InputError
from latentfit.model.objective import ELBO
from latentfit.model.schedules import Cyclical, Linear, Schedule, Sigmoid
from latentfit.model.uncertain import N_DRAWS
from latentfit.model.vae import VAEModule
from latentfit.registry import registry

Family = Literal["null", "flow", "bayesian_prior", "bayesian_weights", "second_model", "regularisation"]

#: share of a run in which the KL weight rises to 1, in every method that does not say otherwise
WARMUP = 0.1


@dataclass(frozen=True)
class Method:
    """A named recipe.

    Attributes:
        name: what users type.
        family: which remedy of the article it is.
        prior, prior_args, posterior: names and arguments of the components, without the latent dimension.
        schedule: "warmup" (linear over the first tenth of the run), "annealed" (sigmoid over the first half) or
            "cyclical" (four rises over the run).
        strength: the KL weight at which the schedule ends.
        kl_term, penalties: the objective's other parts, as configurations.
        weights: the distribution over the decoder's weights, a configuration without the network.
        joint, post_hoc: whether it is trained with the VAE, and whether it is fitted on a frozen one.
    """

    name: str
    family: Family
    prior: str = "standard"
    prior_args: Mapping[str, Any] = field(default_factory=dict)
    posterior: str = "diagonal"
    schedule: Literal["warmup", "annealed", "cyclical"] = "warmup"
    strength: float = 1.0
    kl_term: Mapping[str, Any] | None = None
    penalties: tuple[Mapping[str, Any], ...] = ()
    weights: Mapping[str, Any] | None = None
    joint: bool = True
    post_hoc: bool = False

    @property
    def n_draws(self) -> int:
        """How many draws of the weights are scored; 1 where they have no distribution."""
        return 1 if self.weights is None else self.weights.get("args", {}).get("n_members", N_DRAWS)

    def kl_weight(self, max_steps: int) -> Schedule:
        """The KL weight's schedule in a run of `max_steps`."""
        if self.schedule == "annealed":
            return Sigmoid(steps=max(1, max_steps // 2), end=self.strength)
        if self.schedule == "cyclical":
            return Cyclical(steps=max(4, max_steps), end=self.strength)
        return Linear(steps=max(1, int(WARMUP * max_steps)), end=self.strength)

    def objective(self, max_steps: int) -> ELBO:
        """The objective of a run of `max_steps`."""
        return ELBO(
            kl_weight=self.kl_weight(max_steps),
            penalties=[registry.build("penalty", penalty) for penalty in self.penalties],
            kl_term=None if self.kl_term is None else registry.build("kl_term", self.kl_term),
            n_samples=1 if self.weights is None else self.weights.get("args", {}).get("n_members", 1),
        )


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("standard", "null"),
        Method("beta", "regularisation", strength=4.0),
        Method("annealed", "regularisation", schedule="annealed"),
        Method("cyclical", "regularisation", schedule="cyclical"),
        Method("free_bits", "regularisation", kl_term={"name": "free_bits", "args": {"nats": 0.25}}),
        Method("capacity", "regularisation", strength=2.0, kl_term={"name": "capacity", "args": {"nats": 25.0}}),
        Method("mmd", "regularisation", penalties=({"name": "mmd"},)),
        Method("sliced_wasserstein", "regularisation", penalties=({"name": "sliced_wasserstein"},)),
        Method("adversarial", "regularisation", penalties=({"name": "adversarial"},)),
        Method("total_correlation", "regularisation", penalties=({"name": "total_correlation"},)),
        Method("learned_gaussian", "bayesian_prior", prior="learned_gaussian", post_hoc=True),
        Method("mixture", "bayesian_prior", prior="mixture", post_hoc=True),
        Method("vamp", "bayesian_prior", prior="vamp"),
        Method("exemplar", "bayesian_prior", prior="exemplar", post_hoc=True),
        Method("hierarchical", "bayesian_prior", prior="hierarchical", post_hoc=True),
        Method("dp_mixture", "bayesian_prior", prior="dp_mixture", post_hoc=True),
        Method("realnvp", "flow", prior="realnvp", post_hoc=True),
        Method("planar", "flow", posterior="planar"),
        Method("sylvester", "flow", posterior="sylvester"),
        Method("iaf", "flow", posterior="iaf"),
        Method("realnvp_posterior", "flow", posterior="realnvp_posterior"),
        # cold: at temperature 1 a thousand rows cannot pay for a hundred thousand weights, and the decoder underfits
        Method("bnn", "bayesian_weights", weights={"name": "bnn", "args": {"temperature": 0.1}}),
        Method("mc_dropout", "bayesian_weights", weights={"name": "mc_dropout"}),
        Method("swag", "bayesian_weights", weights={"name": "swag"}),
        Method("ensemble", "bayesian_weights", weights={"name": "ensemble", "args": {"n_members": 5}}),
        Method("sgld", "bayesian_weights", weights={"name": "sgld"}),
        Method("two_stage", "second_model", prior="two_stage", post_hoc=True),
        Method("flow_matching", "second_model", prior="flow_matching", joint=False, post_hoc=True),
        Method("nsf", "flow", prior="nsf", post_hoc=True),
        Method("maf", "flow", prior="maf", post_hoc=True),
    )
}

#: what `--methods auto` compares
AUTO = ("standard", "annealed", "mixture", "realnvp")
#: rungs of the ladder on a frozen model, always fitted
LADDER = ("learned_gaussian", "mixture", "realnvp")

_MEANT = {
    "gmm": "mixture",
    "mog": "mixture",
    "gaussian_mixture": "mixture",
    "normal": "standard",
    "vanilla": "standard",
    "gaussian": "learned_gaussian",
    "real_nvp": "realnvp",
    "rqs": "nsf",
    "neural_spline": "nsf",
    "spline": "nsf",
    "anneal": "annealed",
    "planar_flow": "planar",
    "snf": "sylvester",
    "householder": "sylvester",
    "inverse_autoregressive_flow": "iaf",
    "flow_posterior": "realnvp_posterior",
    "vampprior": "vamp",
    "vamp_prior": "vamp",
    "exemplars": "exemplar",
    "niw": "hierarchical",
    "full_bayes": "hierarchical",
    "dpmm": "dp_mixture",
    "dirichlet_process": "dp_mixture",
    "mean_field": "bnn",
    "bayes_by_backprop": "bnn",
    "bayesian": "bnn",
    "dropout": "mc_dropout",
    "deep_ensemble": "ensemble",
    "ensembles": "ensemble",
    "langevin": "sgld",
    "beta_vae": "beta",
    "betavae": "beta",
    "freebits": "free_bits",
    "cyclic": "cyclical",
    "twostage": "two_stage",
    "two_stage_vae": "two_stage",
    "second_vae": "two_stage",
    "cfm": "flow_matching",
    "rectified_flow": "flow_matching",
    "diffusion": "flow_matching",
    "wae": "mmd",
    "wae_mmd": "mmd",
    "infovae": "mmd",
    "info_vae": "mmd",
    "swae": "sliced_wasserstein",
    "aae": "adversarial",
    "wae_gan": "adversarial",
    "tc": "total_correlation",
    "tcvae": "total_correlation",
    "beta_tcvae": "total_correlation",
    "factor_vae": "total_correlation",
}


def get(name: str) -> Method:
    """The method of a name.

    Raises:
        InputError: an unknown name, with the one that was meant.
    """
    if name in METHODS:
        return METHODS[name]
    if name in _MEANT:
        raise InputError(f"Unknown method {name!r}: Latentfit calls it {_MEANT[name]!r}. All names: latentfit methods.")
    close = difflib.get_close_matches(name, METHODS, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise InputError(f"Unknown method {name!r}.{hint} All names: latentfit methods.")


def parse(methods: str | list[str] | tuple[str, ...]) -> list[Method]:
    """`auto`, `all`, or names: the methods to compare, `standard` always first.

    Raises:
        InputError: an unknown name or none at all.
    """
    if methods == "auto":
        names = list(AUTO)
    elif methods == "all":
        names = list(METHODS)
    else:
        names = methods.split(",") if isinstance(methods, str) else list(methods)
        names = [name.strip() for name in names if name.strip()]
        if not names:
            raise InputError("No method given: --methods auto, all, or names such as mixture,realnvp.")
    chosen = {method.name: method for method in (get("standard"), *map(get, names))}
    return list(chosen.values())


def default_network(numel: int) -> str:
    """The network for rows of this many numbers: an mlp, gated above 256."""
    return "gated_mlp" if numel > 256 else "mlp"


def default_latent_dim(numel: int) -> int:
    """Half the columns within 2 and 16; 40 for rows of more than 256 numbers."""
    return 40 if numel > 256 else max(2, min(16, numel // 2))


def check_latent_dim(latent_dim: int, numel: int) -> None:
    """Warn of more units than a row has numbers.

    Warns:
        DataWarning: as said.
    """
    if latent_dim > numel:
        warnings.warn(
            f"latent_dim is {latent_dim:,}, more than the {numel:,} numbers of a row: the units beyond them cost time "
            "and tend to carry nothing.",
            DataWarning,
            stacklevel=3,
        )


def default_steps(n_train: int, batch_size: int, quick: bool) -> int:
    """Forty passes over the data, within 1,500 and 20,000 steps; `quick` a third of that, at least 1,000."""
    steps = int(min(20_000, max(1_500, 40 * n_train / batch_size)))
    return max(1_000, steps // 3) if quick else steps


def build(
    method: Method | str,
    *,
    data_shape: tuple[int, ...],
    latent_dim: int,
    likelihood: Mapping[str, Any] | str,
    network: str = "mlp",
    network_args: Mapping[str, Any] | None = None,
    preprocess: Transform | None = None,
    encoder_input: Transform | None = None,
    context_features: int = 0,
) -> VAEModule:
    """A VAE of this method with built-in networks.

    The weights are drawn from torch's current random state: fork and seed it around the call.

    Args:
        data_shape: shape of one row.
        likelihood: a name or `{"name", "args"}`.
        network: "mlp", "gated_mlp" or "residual_conv".
        network_args: further arguments of both networks, such as `hidden`.

    Raises:
        CapabilityError: a method that is only fitted post hoc.
    """
    method = get(method) if isinstance(method, str) else method
    if not method.joint:
        raise CapabilityError(
            f"{method.name} is fitted to the codes of a trained VAE, by regression: a density of it costs some hundred "
            f'network calls, too many for every step. Train standard, then retrofit(vae, X, priors=["{method.name}"]).'
        )
    posterior = registry.create("posterior", method.posterior, latent_dim=latent_dim)
    p_x = registry.build("likelihood", likelihood)
    out_shape = [*data_shape, p_x.n_parameters] if p_x.n_parameters > 1 else list(data_shape)
    encoder, decoder = _networks(
        network,
        list(data_shape),
        posterior.n_parameters,
        latent_dim,
        out_shape,
        context_features,
        network_args or {},
    )
    if method.weights is not None:
        decoder = registry.create("weights", method.weights["name"], network=decoder, **method.weights.get("args", {}))
    return VAEModule(
        encoder=encoder,
        decoder=decoder,
        prior=registry.create("prior", method.prior, latent_dim=latent_dim, **method.prior_args),
        posterior=posterior,
        likelihood=p_x,
        preprocess=preprocess,
        encoder_input=encoder_input,
        conditional=context_features > 0,
    )


def _networks(
    name: str,
    data_shape: list[int],
    n_posterior: int,
    latent_dim: int,
    out_shape: list[int],
    context_features: int,
    arguments: Mapping[str, Any],
) -> tuple[nn.Module, nn.Module]:
    if name == "residual_conv":
        if len(data_shape) not in (2, 3):
            raise InputError(f"residual_conv needs images (H, W) or (C, H, W), got rows of shape {tuple(data_shape)}.")
        common = {"context_features": context_features, **arguments}
        return (
            registry.create("network", name, in_shape=data_shape, out_shape=n_posterior, direction="encode", **common),
            registry.create(
                "network",
                name,
                in_shape=latent_dim,
                out_shape=out_shape,
                direction="decode",
                image_shape=data_shape,
                **common,
            ),
        )
    common = {"context_features": context_features, **arguments}
    return (
        registry.create("network", name, in_shape=data_shape, out_shape=n_posterior, **common),
        registry.create("network", name, in_shape=latent_dim, out_shape=out_shape, **common),
    )
