"""How long, how fast and how carefully to train."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from latentfit.errors import InputError

Schedule = Literal["one_cycle", "cosine", "constant"]
Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True, slots=True)
class Recipe:
    r"""The settings of one training run.

    The learning rate at step t of T, with warm-up W = warmup_fraction T (`one_cycle`; W = 0 for `cosine`), is

    .. math:: \eta_t = \eta (t + 1) / W \;(t < W), \quad \eta_t = \eta (1 + \cos \pi \tfrac{t-W}{T-W}) / 2.

    Attributes:
        max_steps: T, gradient steps.
        batch_size: rows a step; the whole data set where it is smaller.
        learning_rate: eta, the peak rate of Adam.
        schedule: "one_cycle" (warm-up, then cosine to about 0), "cosine" or "constant".
        warmup_fraction: W / T.
        weight_decay: decoupled (AdamW) where positive.
        clip_norm: largest Euclidean norm of the whole gradient, or None. The default only stops rare spikes:
            a gradient in nats per row, summed over an image, has a norm of tens.
        ema_decay: decay per step of the averaged weights that are validated and kept; 0 keeps the last.
        validate_every: steps between validations; None: about 20 in a run, at least 50 steps apart.
        patience: validations without improvement after which training stops early; None: never.
        min_steps: validations before this step never count towards `patience` (a warm-up must end first).
        precision: "fp32", or "bf16" autocast around the loss ("bf16-mixed" is the same); of an `ELBO` that is the
            encoder and the decoder, and its densities stay in float32.
        device: "cpu", "cuda", "cuda:1", or "auto".

    Raises:
        InputError: a value that cannot be used.

    Example:
        >>> recipe = Recipe(max_steps=100, schedule="constant")
        >>> recipe.rate(0), recipe.rate(99)
        (0.001, 0.001)
    """

    max_steps: int = 2000
    batch_size: int = 128
    learning_rate: float = 1e-3
    schedule: Schedule = "one_cycle"
    warmup_fraction: float = 0.1
    weight_decay: float = 0.0
    clip_norm: float | None = 200.0
    ema_decay: float = 0.0
    validate_every: int | None = None
    patience: int | None = None
    min_steps: int = 0
    precision: Precision = "fp32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.precision == "bf16-mixed":  # Lightning's word for it
            object.__setattr__(self, "precision", "bf16")
        _positive_int("max_steps", self.max_steps)
        _positive_int("batch_size", self.batch_size)
        for name in ("validate_every", "patience"):
            if getattr(self, name) is not None:
                _positive_int(name, getattr(self, name))
        _within("learning_rate", self.learning_rate, 0.0, math.inf, open_low=True)
        _within("warmup_fraction", self.warmup_fraction, 0.0, 1.0)
        _within("weight_decay", self.weight_decay, 0.0, math.inf)
        _within("ema_decay", self.ema_decay, 0.0, 1.0)
        _within("min_steps", self.min_steps, 0, math.inf)
        if self.clip_norm is not None:
            _within("clip_norm", self.clip_norm, 0.0, math.inf, open_low=True)
        for name, choices in (("schedule", get_args(Schedule)), ("precision", get_args(Precision))):
            if getattr(self, name) not in choices:
                raise InputError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}.")

    def rate(self, step: int) -> float:
        """The learning rate of step number `step`, counted from 0."""
        if self.schedule == "constant":
            return self.learning_rate
        warmup = math.ceil(self.warmup_fraction * self.max_steps) if self.schedule == "one_cycle" else 0
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        done = (step - warmup) / max(1, self.max_steps - warmup)
        return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))

    @property
    def validation_interval(self) -> int:
        """Steps between validations."""
        return self.validate_every or max(50, self.max_steps // 20)

    def torch_device(self) -> torch.device:
        """The device that `device` names on this machine.

        Raises:
            InputError: an unknown name, or a GPU that is not there.
        """
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            device = torch.device(self.device)
        except RuntimeError:
            raise InputError(f"device must be 'cpu', 'cuda' or 'auto', got {self.device!r}.") from None
        if device.type == "cuda" and not torch.cuda.is_available():
            raise InputError(f"device {self.device!r} asked for, but torch sees no GPU here. Try device='auto'.")
        return device


def _positive_int(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name} must be a whole number of at least 1, got {value!r}.")


def _within(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    if not low <= value < high or (open_low and value == low):
        bound = f"{'above' if open_low else 'at least'} {low:g}"
        raise InputError(
            f"{name} must be {bound} and {f'below {high:g}' if high < math.inf else 'finite'}, got {value!r}."
        )
