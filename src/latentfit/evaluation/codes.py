"""q(z given x) of many rows, kept so that z can be drawn again: what every number about latents reads."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Generator, Tensor

from latentfit.errors import DataWarning, InputError
from latentfit.evaluation.rows import blocks, evaluation_rows, frozen
from latentfit.model.contracts import Prior
from latentfit.model.rows import CodeRows, as_std, code_rows
from latentfit.model.vae import VAEModule

#: log-variances that tell whether they are some
FEWEST_SPREADS = 100
#: rows encoded at once
ENCODER_ROWS = 2_000
#: rows in float64 at once
FLOAT64_ROWS = 16_384
#: draws kept per row where q(z given x) cannot be drawn again from its moments (a flow posterior)
STORED_DRAWS = 8
#: of a stored draw's distance from the mean, what a prior is fitted to; the rest of its variance is fresh noise
KEPT = math.sqrt(0.75)


@dataclass(frozen=True)
class Codes:
    """q(z given x) of N rows.

    Attributes:
        mean: (N, *event_shape).
        std: like mean, the standard deviation per dimension.
        scale_tril: (N, D, D) or None, the Cholesky factor where q is a full Gaussian.
        stored: (S, N, *event_shape) or None, draws where q is no Gaussian; `sample` cycles through them.
        context: (N, C) or None, what a conditional prior needs.
        groups: (N,) or None, labels of related rows, for cluster-robust errors.
    """

    mean: Tensor
    std: Tensor
    scale_tril: Tensor | None = None
    stored: Tensor | None = None
    context: Tensor | None = None
    groups: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        mean: Any,
        *,
        std: Any = None,
        var: Any = None,
        logvar: Any = None,
        groups: ArrayLike | None = None,
        what: str = "Codes",
    ) -> Codes:
        """Codes from arrays or tensors: mean and exactly one spread, each (N, *event_shape).

        Raises:
            InputError: see `latentfit.model.rows.as_std`; fewer than two rows; other than one group a row, or one
                group in all.
        """
        mean = _floating(mean)
        if mean.dim() < 2 or len(mean) < 2:
            raise InputError(f"{what}: mean has shape {tuple(mean.shape)}; expected (N, D) with at least two rows.")
        spread = {"std": std, "var": var, "logvar": logvar}
        tensors = {key: None if value is None else _floating(value).to(mean) for key, value in spread.items()}
        given = tensors["logvar"]
        if given is not None and given.numel() >= FEWEST_SPREADS and bool((given > 0).all()):
            warnings.warn(
                f"{what}: all log-variances are above 0, so every q(z given x) would be wider than N(0, I). Are they "
                "variances? Then give them as var.",
                DataWarning,
                stacklevel=3,
            )
        label = None if groups is None else np.asarray(groups)
        if label is not None and label.shape != (len(mean),):
            raise InputError(f"{what}: groups has shape {label.shape}, expected ({len(mean)},), one for each row.")
        refuse_one_group(label, what)
        return cls(mean, as_std(what, mean, **tensors), groups=label)

    @classmethod
    def joined(cls, parts: Sequence[Codes]) -> Codes:
        """Codes of several sets of rows, one after the other; all of one kind."""

        def join(name: str, dim: int = 0) -> Tensor | None:
            values = [getattr(part, name) for part in parts]
            return None if values[0] is None else torch.cat(values, dim)

        mean, std = (torch.cat([getattr(part, name) for part in parts]) for name in ("mean", "std"))
        groups = None if parts[0].groups is None else np.concatenate([part.groups for part in parts])
        return cls(mean, std, join("scale_tril"), join("stored", 1), join("context"), groups)

    def __len__(self) -> int:
        return self.mean.shape[0]

    def __getitem__(self, rows: Any) -> Codes:
        """The codes of some rows: a slice or an index array."""
        index = torch.as_tensor(rows, device=self.mean.device) if isinstance(rows, np.ndarray) else rows

        def pick(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[index]

        picked = None if self.groups is None else self.groups[rows if not isinstance(rows, Tensor) else rows.cpu()]
        stored = None if self.stored is None else self.stored[:, index]
        return Codes(self.mean[index], self.std[index], pick(self.scale_tril), stored, pick(self.context), picked)

    @property
    def event_shape(self) -> torch.Size:
        """The shape of z."""
        return self.mean.shape[1:]

    def sample(self, n: int = 1, generator: Generator | None = None) -> Tensor:
        """Draws z ~ q(z given x): (n, N, *event_shape). The first draws do not depend on n."""
        return torch.stack(list(self.draws(n, generator)))

    def draws(self, n: int, generator: Generator | None = None) -> Iterator[Tensor]:
        """The draws of `sample` one after the other, so that only one is in memory: n times (N, *event_shape)."""
        for number in range(n):
            if self.stored is not None:
                yield self.stored[number % len(self.stored)]
                continue
            noise = torch.randn(self.mean.shape, generator=generator, dtype=self.mean.dtype, device=self.mean.device)
            if self.scale_tril is None:
                yield noise.mul_(self.std).add_(self.mean)
            else:
                offset = torch.einsum("nij,nj->ni", self.scale_tril, noise.flatten(1))
                yield self.mean + offset.view_as(noise)

    def rows(self, prior: Prior) -> CodeRows:
        """Gaussians, one per row, with draws like those of q(z): what this prior is fitted to.

        Where q is no Gaussian each is around a stored draw of its row, drawn in toward the mean by as much as its own
        noise adds: the aggregate keeps its mean and variances, and most of the shape that the rows' own Gaussians
        have not. One draw per row, for draws of a row on both sides of the fit's split would hide overfitting.
        """
        mean, spread = self.mean, {"std": self.std} if self.scale_tril is None else {"scale_tril": self.scale_tril}
        if self.stored is not None:
            mean, spread = torch.lerp(mean, self.stored[0], KEPT), {"std": math.sqrt(1 - KEPT**2) * self.std}
        return code_rows(prior.event_shape, mean, **spread, context=self.context if prior.context_features else None)

    def kl_to_standard_normal(self) -> Tensor:
        r"""KL(q(z given x) || N(0, I)) of Gaussian codes per row: (N,), nats, float64.

        Where q is a full Gaussian its correlations count; where it is no Gaussian this is the KL of its
        moments.
        """
        parts = [
            unit_kl(self.mean[rows], self.std[rows]).flatten(1).sum(-1) for rows in blocks(len(self), FLOAT64_ROWS)
        ]
        per_unit = torch.cat(parts)
        if self.scale_tril is None:
            return per_unit
        diagonal = self.scale_tril.double().diagonal(dim1=-2, dim2=-1)
        return per_unit + self.std.double().log().flatten(1).sum(-1) - diagonal.log().sum(-1)


def refuse_one_group(groups: np.ndarray | None, what: str) -> None:
    """Errors that heed groups are found from the differences between them.

    Raises:
        InputError: all rows in one group.
    """
    if groups is not None and len(np.unique(groups)) == 1:
        raise InputError(
            f"{what}: groups has one label, {str(groups[0])!r}, for all rows, so nothing says how groups differ. Give "
            "two groups or more, or none."
        )


def unit_kl(mean: Tensor, std: Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(0, 1)) of each unit, elementwise, nats, float64; infinite where std is 0."""
    mean, std = mean.double(), std.double()
    return 0.5 * (mean.square() + std.square() - 1) - std.log()


@torch.no_grad()
def encode_rows(vae: VAEModule, X: Any, *, groups: ArrayLike | None = None, random_state: int = 0) -> Codes:
    """q(z given x) of rows X (N, *data_shape), in blocks.

    The tensors carry no gradient and may be trained on (`prior.fit`).

    Raises:
        InputError: rows that cannot be used.
    """
    batch = evaluation_rows(X, vae)
    generator = torch.Generator(device=vae.device).manual_seed(random_state)
    parts: list[dict[str, Tensor]] = []
    with frozen(vae, random_state=random_state):
        for rows in blocks(len(batch), ENCODER_ROWS):
            q = vae.encode(batch[rows].to(vae.device))
            cache = dict(q.cache())
            if not set(cache) <= {"mean", "std", "scale_tril"}:
                mean, variance = q.moments()
                draws, _ = q.rsample_with_log_prob(STORED_DRAWS, generator)
                cache = {"mean": mean, "std": variance.sqrt(), "stored": draws.transpose(0, 1)}
            parts.append(cache)
    joined = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    if "stored" in joined:
        joined["stored"] = joined["stored"].transpose(0, 1)
    label = None if groups is None else np.asarray(groups)
    return Codes(**joined, context=batch.context, groups=label)


def _floating(values: Any) -> Tensor:
    tensor = values.detach() if isinstance(values, Tensor) else torch.as_tensor(np.asarray(values))
    return tensor if tensor.is_floating_point() else tensor.to(torch.get_default_dtype())
