"""A small residual convolutional network, from an image to a vector or from a vector to an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latentfit.errors import InputError
from latentfit.networks.base import OUTPUT_GAIN, Network
from latentfit.networks.linear import Linear

#: images are halved until their smaller side is at most this
SMALLEST_SIDE = 4


class ResidualConv(Network):
    """Residual blocks between halvings (encode) or doublings (decode) of the image, with group normalisation.

    Encoding, context joins the features before the last hidden layer; decoding, it joins the vector.

    Args:
        in_shape, out_shape, context_features: see `Network`.
        direction: `"encode"`, image -> vector; `"decode"`, vector -> image.
        image_shape: (C, H, W) or (H, W); by default in_shape or out_shape. To be given where the rows are
            flat, or
            where decoding gives P numbers per pixel: out_shape is then (*image_shape, P).
        width: channels of the first stage; they double with each halving, up to four times this.
        hidden: width of the dense layer between features and vector.

    Raises:
        InputError: a direction or image shape that does not go with the shapes.

    Example:
        >>> import torch
        >>> from latentfit.networks import ResidualConv
        >>> encoder = ResidualConv(in_shape=[28, 28], out_shape=16, direction="encode", width=8)
        >>> decoder = ResidualConv(in_shape=8, out_shape=[28, 28], direction="decode", width=8)
        >>> encoder(torch.zeros(5, 28, 28)).shape, decoder(torch.zeros(5, 8)).shape
        (torch.Size([5, 16]), torch.Size([5, 28, 28]))
    """

    def __init__(
        self,
        in_shape: int | Sequence[int],
        out_shape: int | Sequence[int],
        context_features: int = 0,
        direction: Literal["encode", "decode"] = "encode",
        image_shape: Sequence[int] | None = None,
        width: int = 16,
        hidden: int = 256,
    ) -> None:
        super().__init__(in_shape, out_shape, context_features)
        if direction not in ("encode", "decode"):
            raise InputError(f"direction is 'encode' or 'decode', got {direction!r}.")
        if width < 1 or hidden < 1:
            raise InputError(f"width and hidden must be positive, got {width} and {hidden}.")
        outer = self.in_shape if direction == "encode" else self.out_shape
        image = tuple(outer if image_shape is None else image_shape)
        n_per_pixel, rest = divmod(math.prod(outer), math.prod(image)) if min(image, default=0) > 0 else (0, 1)
        if len(image) not in (2, 3) or rest or (direction == "encode" and n_per_pixel != 1):
            raise InputError(
                f"residual_conv needs an image (C, H, W) or (H, W) to {direction}; got image_shape {image} "
                f"for rows of shape {tuple(outer)}. Flat rows? Give image_shape=[C, H, W]."
            )
        self.direction = direction
        self.image = (1, *image) if len(image) == 2 else image
        self.n_per_pixel = n_per_pixel
        channels, *size = self.image
        sizes = [tuple(size)]
        while min(sizes[-1]) > SMALLEST_SIDE:
            sizes.append(tuple((side + 1) // 2 for side in sizes[-1]))
        widths = [min(width * 2**stage, 4 * width) for stage in range(len(sizes) - 1)] or [width]
        self.top = (widths[-1], *sizes[-1])
        n_top = math.prod(self.top)
        if direction == "encode":
            self.stages = nn.Sequential(*_encoding(channels, widths, len(sizes) > 1))
            self.head = nn.Sequential(
                Linear(n_top + context_features, hidden, gain=math.sqrt(2)),
                nn.SiLU(),
                Linear(hidden, self.out_features, gain=OUTPUT_GAIN),
            )
        else:
            self.head = nn.Sequential(
                Linear(self.in_features + context_features, hidden, gain=math.sqrt(2)),
                nn.SiLU(),
                Linear(hidden, n_top),
            )
            targets = sizes[-2::-1] if len(sizes) > 1 else []
            self.stages = nn.Sequential(*_decoding(widths, targets, channels * n_per_pixel))

    def rows(self, x: Tensor) -> Tensor:
        if self.direction == "encode":
            image, context = x[:, : self.in_features], x[:, self.in_features :]
            features = self.stages(image.reshape(-1, *self.image)).flatten(1)
            if self.context_features:
                features = torch.cat([features, context], -1)
            return self.head(features)
        channels, height, width = self.image
        y = self.stages(self.head(x).reshape(-1, *self.top))  # (B, C P, H, W)
        if self.n_per_pixel == 1:
            return y.flatten(1)
        return y.reshape(-1, channels, self.n_per_pixel, height, width).movedim(2, -1).flatten(1)


class Block(nn.Module):
    """x + conv(act(norm(conv(act(norm(x)))))): (B, C, H, W) -> the same; it starts near the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(channels), _norm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = _small(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class Up(nn.Module):
    """Double the image and cut it to `size`: a convolution to four times the channels, shuffled into pixels.

    Unlike interpolation, its gradient is summed in a fixed order on every device.
    """

    def __init__(self, n_in: int, n_out: int, size: tuple[int, ...]) -> None:
        super().__init__()
        self.size = size
        self.conv = nn.Conv2d(n_in, 4 * n_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x), 2)[..., : self.size[0], : self.size[1]]


def _encoding(channels: int, widths: list[int], halve: bool) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for n_in, n_out in zip([channels, *widths], widths, strict=False):
        layers += [nn.Conv2d(n_in, n_out, 3, stride=2 if halve else 1, padding=1), Block(n_out)]
    return [*layers, _norm(widths[-1]), nn.SiLU()]


def _decoding(widths: list[int], targets: list[tuple[int, ...]], n_out: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    narrower = [*widths[-2::-1], widths[0]]
    for n_in, n_next, size in zip(widths[::-1], narrower, targets, strict=False):
        layers += [Block(n_in), Up(n_in, n_next, size)]
    if not targets:
        layers.append(Block(widths[0]))
    return [*layers, _norm(widths[0]), nn.SiLU(), _small(nn.Conv2d(widths[0], n_out, 3, padding=1))]


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(channels, 8), channels)


def _small(conv: nn.Conv2d) -> nn.Conv2d:
    conv.weight.data.mul_(OUTPUT_GAIN)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv
