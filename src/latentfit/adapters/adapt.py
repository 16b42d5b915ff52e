"""`adapt`: run a foreign VAE on an example, say what was understood, and put it behind the contract."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from latentfit.adapters import pythae, scvi
from latentfit.adapters.adapted import AdaptedVAE, in_eval
from latentfit.adapters.calls import ForeignCall, modules_behind
from latentfit.adapters.encoding import ForeignEncoder
from latentfit.adapters.example import first_rows
from latentfit.adapters.given import GivenGaussian
from latentfit.adapters.run import Options, Run
from latentfit.adapters.understood import Understood
from latentfit.errors import InputError, overheard
from latentfit.model.contracts import Likelihood, as_shape
from latentfit.model.vae import VAEModule
from latentfit.priors import StandardNormalPrior

#: packages whose models say more than their methods do
PACKAGES = (scvi, pythae)


def adapt(
    model: Any = None,
    *,
    encode: Callable[..., Any] | None = None,
    decode: Callable[..., Any] | None = None,
    example: Any = None,
    likelihood: str | Likelihood | None = None,
    kl_weight: float | None = None,
    reconstruction: str | None = None,
    spread: str = "auto",
    output: str = "auto",
    scale: float | str = "auto",
    latent_shape: tuple[int, ...] | None = None,
    latent_dim: int | None = None,
    device: str | torch.device | None = None,
) -> AdaptedVAE:
    """A trained VAE of anybody's, behind the contract: `print` shows what was understood; no weight is changed.

    The model is run on the first rows of the example, in eval mode, with every module's flag restored.

    Args:
        model: a module with encode and decode methods (Lightning's too), or with encoder and decoder; a diffusers
            `AutoencoderKL`, a scvi-tools `SCVI`, a pythae VAE.
        encode: in place of a model: x (N, *data_shape) -> (mean, spread), a torch `Distribution`, or an object with
            `.latent_dist` or with `.mean` and `.std`; each (N, *event_shape).
        decode: z (B, *event_shape) -> a tensor (B, *data_shape), or what holds one first or as `.sample`, or a
            `Distribution`. Without it there are codes only.
        example: at least two rows as the training saw them: a tensor, an array, an (x, y) batch, a `Dataset` or a
            `DataLoader`.
        likelihood: a name or a `Likelihood`; None where it is unknown: then nothing about p(x given z) is scored.
        kl_weight, reconstruction: the loss it was trained with, see `Loss`.
        spread: what `encode` gives beside the mean: "std", "var", "logvar", or "auto": log-variance where it has
            negatives, else the standard deviation.
        output: what `decode` gives: "mean", "probs", "logits", or "auto": for a Bernoulli logits where values lie
            outside [0, 1], else probabilities.
        scale: sigma of a Normal; "auto": the root mean square error on the example at draws of z.
        latent_shape, latent_dim: the shape of z, needed where `encode` gives mean and spread in one tensor.
        device: where to work; the model is moved there. By default where it is.

    Returns:
        The adapted model, with N(0, I) as its prior.

    Raises:
        InputError: what cannot be understood, with what was got, what was expected and what to try.
        CapabilityError: encoders that are not Gaussian.

    Warns:
        DataWarning: where the spread had to be guessed.

    Example:
        >>> net = torch.nn.Linear(4, 4)
        >>> m = adapt(encode=lambda x: net(x).chunk(2, 1), decode=torch.nn.Linear(2, 4), example=torch.randn(9, 4))
        >>> m.event_shape, m.can_score
        (torch.Size([2]), False)
    """
    given = {
        "example": example,
        "likelihood": likelihood,
        "kl_weight": kl_weight,
        "reconstruction": reconstruction,
        "spread": None if spread == "auto" else spread,
        "output": None if output == "auto" else output,
        "scale": None if scale == "auto" else scale,
        "latent_shape": latent_shape,
        "latent_dim": latent_dim,
        "device": device,
    }
    for package in PACKAGES:
        if package.matches(model):
            return _by_package(package.adapt_model, model, {k: v for k, v in given.items() if v is not None})
    options = _options(likelihood, kl_weight, reconstruction, spread, output, scale, latent_shape, latent_dim)
    name, foreign, to_z, to_x = _parts(model, encode, decode)
    if example is None:
        raise InputError(
            "The model is run once to be understood: give rows as its training saw them (example= of adapt, X of "
            "diagnose, X_train of retrofit)."
        )
    for module in foreign if device is not None else ():
        module.to(device)
    found = next((t for m in foreign for t in (*m.parameters(), *m.buffers())), None)
    where = torch.device(device or "cpu") if found is None else found.device
    x = first_rows(example, to_z.dtype or torch.float32).to(where).x
    run = Run(x, to_z, to_x, options)
    with overheard() as told, in_eval(to_z, *([to_x] if to_x else [])), torch.no_grad():
        run.encoder()
        run.decoder()
    lines = [_head(name, where, bool(foreign)), *run.lines]
    if where.type == "cpu" and torch.cuda.is_available():
        lines.append(Understood("free"))
    return AdaptedVAE(
        ForeignEncoder(to_z, run.reading),
        run.decoder_module,
        prior=StandardNormalPrior(tuple(run.mean.shape[1:])),
        posterior=GivenGaussian(tuple(run.mean.shape[1:]), full=run.reading.kind == "scale_tril"),
        likelihood=run.likelihood,
        model_name=name,
        understood=lines,
        foreign=foreign,
        data_shape=x.shape[1:],
        data_range=(float(x.min()), float(x.max())),
        device=where,
        loss=run.loss,
        grey=run.grey,
        notes=told,
    )


def _by_package(adapt_model: Callable[..., AdaptedVAE], model: Any, given: dict[str, Any]) -> AdaptedVAE:
    """A package's own adapter; it is told what it takes, and the rest is refused, but for an example it needs not."""
    takes = inspect.signature(adapt_model).parameters
    unknown = set(given) - set(takes) - {"example"}
    if unknown:
        raise InputError(
            f"adapt: a {type(model).__name__} says itself how it was built; leave out {', '.join(sorted(unknown))}."
        )
    return adapt_model(model, **{key: value for key, value in given.items() if key in takes})


def _options(
    likelihood: str | Likelihood | None,
    kl_weight: float | None,
    reconstruction: str | None,
    spread: str,
    output: str,
    scale: float | str,
    latent_shape: tuple[int, ...] | None,
    latent_dim: int | None,
) -> Options:
    for name, value, words in (
        ("spread", spread, ("auto", "std", "var", "logvar")),
        ("output", output, ("auto", "mean", "probs", "logits")),
    ):
        if value not in words:
            raise InputError(f"adapt: {name} is one of {', '.join(words)}, got {value!r}.")
    if latent_shape is not None and latent_dim is not None:
        raise InputError("adapt: give latent_dim or latent_shape, not both.")
    if isinstance(scale, str) and scale != "auto":
        raise InputError(f"adapt: scale is a number or 'auto', got {scale!r}.")
    latent = latent_shape if latent_dim is None else latent_dim
    shape = None if latent is None else as_shape(latent)
    return Options(likelihood, kl_weight, reconstruction, spread, output, scale, shape)


def _parts(
    model: Any, encode: Callable[..., Any] | None, decode: Callable[..., Any] | None
) -> tuple[str, list[nn.Module], ForeignCall, ForeignCall | None]:
    """Name, modules, encoder and decoder."""
    if isinstance(model, VAEModule) or hasattr(model, "module_"):
        raise InputError(f"{type(model).__name__} is Latentfit's own and needs no adapting; use it as it is.")
    if model is None:
        if encode is None:
            raise InputError("adapt: give a model, or encode= and decode=.")
        calls = [function for function in (encode, decode) if function is not None]
        modules = {id(module): module for function in calls for module in modules_behind(function)}
        own = getattr(encode, "__self__", encode)
        name = "encode, decode" if len(calls) == 2 else "encode"
        name = type(own).__name__ if isinstance(own, nn.Module) and len(modules) == 1 else name
        return name, list(modules.values()), ForeignCall(encode), None if decode is None else ForeignCall(decode)
    if isinstance(model, type):
        raise InputError(f"adapt: {model.__name__} is a class; give the trained model, an object of it.")
    if isinstance(model, Mapping):
        raise InputError("adapt: a state_dict holds weights, not their code: build the model and load them into it.")
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    to_z = encode or getattr(model, "encode", None) or getattr(model, "encoder", None)
    to_x = decode or getattr(model, "decode", None) or getattr(model, "decoder", None)
    if not callable(to_z):
        raise InputError(
            f"{type(model).__name__} has neither encode nor encoder; give them: adapt(model, encode=..., decode=...)."
        )
    modules = {id(module): module for part in (model, to_z, to_x) for module in modules_behind(part)}
    inner = {id(part) for module in modules.values() for part in module.modules() if part is not module}
    outermost = [module for key, module in modules.items() if key not in inner]
    return type(model).__name__, outermost, ForeignCall(to_z), ForeignCall(to_x) if callable(to_x) else None


def _head(name: str, where: torch.device, has_modules: bool) -> Understood:
    device = f"{where.type}:{where.index or 0}" if where.type == "cuda" else str(where)
    mode = Understood("mode.eval" if has_modules else "mode.functions")
    return Understood("head", {"name": name, "device": device, "mode": mode})
