"""The latent-scale card: where the magic number that diffusion models multiply latents by comes from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from latentfit.adapters.subject import subject
from latentfit.evaluation.codes import encode_rows
from latentfit.evaluation.estimate import Estimate


@dataclass(frozen=True)
class LatentScaleCard:
    r"""Mean, standard deviation and correlation of q(z) per channel; it prints as a table.

    Latent diffusion multiplies z by one number so that it has unit variance: 1 / std of z over all channels, on the
    first batch of training (Rombach et al. 2022, arXiv:2112.10752, section G; 0.18215 is theirs). One number assumes
    that the channels have mean 0 and the same scale; the table shows how far that holds.

    Attributes:
        mean, std: (C,), of z ~ q(z given x) over rows and places: std^2 = Var[mu(x)] + E[sigma(x)^2].
        scale_factor: 1 / std of all z, the number for one scale, with its error over rows.
        channel_factors: (C,), 1 / std of each channel: what replaces it where channels differ.
        noise_share: (C,), E[sigma(x)^2] / std^2: 1 where a channel carries nothing.
        correlation: (C, C), between channels at the same place.
        configured: the model's own `config.scaling_factor`, or None.
        configured_std: std of z times `configured`; 1 is what it is for.
    """

    mean: np.ndarray
    std: np.ndarray
    scale_factor: Estimate
    channel_factors: np.ndarray
    noise_share: np.ndarray
    correlation: np.ndarray
    configured: float | None
    configured_std: float | None

    def __str__(self) -> str:
        lines = ["channel     mean      std    1/std  noise share  largest correlation"]
        for c in range(len(self.mean)):
            others = np.delete(self.correlation[c], c)
            largest = others[np.abs(others).argmax()] if len(others) else 0.0
            numbers = f"{self.mean[c]:9.3f}{self.std[c]:9.3f}{self.channel_factors[c]:9.3g}"
            lines.append(f"{c:7}{numbers}{100 * self.noise_share[c]:11.1f} %{largest:21.2f}")
        error = self.scale_factor.std_error
        lines.append(f"scale_factor = 1 / std of all z = {self.scale_factor.value:.5f} ± {error:.5f}")
        if self.configured is not None and self.configured_std is not None:
            lines.append(f"config.scaling_factor {self.configured:g} gives z a std of {self.configured_std:.3f}")
        return "\n".join(lines)


def latent_scale_card(model: Any, X: Any) -> LatentScaleCard:
    """The scale of a VAE's latents, channel by channel, on rows X (N, *data_shape).

    Args:
        model: a diffusers `AutoencoderKL`, or whatever `adapt` takes or made; z (C, H, W), or (D,), whose units are
            then the channels.
        X: rows as the training saw them.

    Raises:
        InputError: see `adapt`.

    Example:
        >>> from latentfit.adapters import adapt
        >>> net = torch.nn.Conv2d(3, 8, 4, stride=4)
        >>> m = adapt(encode=lambda x: net(x).chunk(2, 1), example=torch.randn(4, 3, 8, 8))
        >>> latent_scale_card(m, torch.randn(16, 3, 8, 8)).mean.shape
        (4,)
    """
    adapted = subject(model, X)
    codes = encode_rows(adapted.vae, adapted.rows(X, "X"))
    mean = codes.mean.double().flatten(2) if codes.mean.dim() > 2 else codes.mean.double().unsqueeze(-1)  # (N, C, P)
    noise = codes.std.double().square().view_as(mean)
    center = mean.mean((0, 2))  # (C,)
    offset = mean - center[:, None]
    places = mean.shape[0] * mean.shape[2]
    signal = torch.einsum("ncp,ndp->cd", offset, offset) / places
    of_noise = noise.mean((0, 2))
    covariance = signal + of_noise.diag()
    if codes.scale_tril is not None:
        factor = codes.scale_tril.double()
        covariance = signal + (factor @ factor.mT).mean(0)
    std = covariance.diagonal().sqrt()
    # Var of all numbers of z together, around their one mean, row by row
    squares = ((mean - mean.mean()).square() + noise).mean((1, 2))
    variance = Estimate.of(squares.cpu().numpy())
    scale = 1 / math.sqrt(variance.value)
    # the interval of the variance mapped, for the factor falls with it
    low, high = (max(bound, 1e-300) ** -0.5 for bound in reversed(variance.interval))
    factor_all = Estimate(scale, 0.5 * scale**3 * variance.std_error, (low, high), variance.level)
    configured = getattr(getattr(model, "config", None), "scaling_factor", None)
    return LatentScaleCard(
        mean=center.cpu().numpy(),
        std=std.cpu().numpy(),
        scale_factor=factor_all,
        channel_factors=(1 / std).cpu().numpy(),
        noise_share=(of_noise / std.square()).cpu().numpy(),
        correlation=(covariance / torch.outer(std, std)).cpu().numpy(),
        configured=None if configured is None else float(configured),
        configured_std=None if configured is None else float(configured) / scale,
    )
