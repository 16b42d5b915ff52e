"""The report's pixels: grids and thumbnails as PNG, and the card for chat, drawn from arrays only."""

from __future__ import annotations

import base64
import io
import math
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

#: pixels per side of a cell of a grid, at most; larger images are thinned, so that a report stays under 8 MB
CELL = 56
THUMBNAIL = 24
#: of the card: what is drawn from the model's own prior, and from another
COLOURS = {"null": "#b4531f", "best": "#0b6b74"}
#: of a headline in large letters
MOST_LINES = 4


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether rows of this shape are pictures: (H, W), (1 or 3, H, W) or (H, W, 1 or 3).

    >>> is_image((8, 8)), is_image((3, 64, 64)), is_image((20,))
    (True, True, False)
    """
    if len(shape) == 2:
        return min(shape) > 1
    return len(shape) == 3 and (shape[0] in (1, 3) or shape[-1] in (1, 3))


def scale_of(arrays: list[np.ndarray]) -> tuple[float, float, bool]:
    """One grey scale for all pictures: (low, high, ink).

    `ink` is true for strokes on an empty ground (most pixels at the minimum): they are drawn dark on white.
    """
    reference = next((a for a in arrays if a.size), None)
    if reference is None:
        return 0.0, 1.0, False
    low, high = float(np.nanmin(reference)), float(np.nanmax(reference))
    grey = _hwc(reference).shape[-1] == 1
    ink = grey and float(np.nanmedian(reference)) <= low + 0.1 * (high - low)
    return low, high if high > low else low + 1.0, ink


def grid_png(images: np.ndarray, scale: tuple[float, float, bool], n: int = 6) -> bytes:
    """The first n x n images (m, *shape) as one PNG with transparent gaps, n in a row."""
    pixels = _pixels(images[: n * n], scale, CELL)
    zoom = max(1, 60 // max(pixels.shape[1], pixels.shape[2]))
    pixels = pixels.repeat(zoom, axis=1).repeat(zoom, axis=2)
    gap, (_, height, width, channels) = 3, pixels.shape
    rows = -(-len(pixels) // n)
    sheet = np.zeros((rows * height + (rows - 1) * gap, n * width + (n - 1) * gap, channels + 1), np.uint8)
    for i, image in enumerate(pixels):
        top, left = i // n * (height + gap), i % n * (width + gap)
        sheet[top : top + height, left : left + width, :channels] = image
        sheet[top : top + height, left : left + width, channels] = 255
    return png(sheet)


def thumbnails(images: np.ndarray, scale: tuple[float, float, bool]) -> list[str]:
    """Each image (m, *shape) as a data URI of a PNG of at most 24 pixels a side."""
    return [data_uri(png(image)) for image in _pixels(images, scale, THUMBNAIL)]


def png(pixels: np.ndarray) -> bytes:
    """uint8 pixels (H, W, C) as PNG; C: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA."""
    height, width, channels = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    body = zlib.compress(rows.tobytes(), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def data_uri(content: bytes) -> str:
    """PNG bytes as a data URI."""
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")


def card_png(
    name: str,
    headline: str,
    sheets: Sequence[tuple[np.ndarray, str, str]],
    scale: tuple[float, float, bool],
    facts: Sequence[tuple[str, str]],
    *,
    image: bool,
) -> bytes:
    """A card as a PNG of 1200 x 630 pixels: headline, samples before and after, the numbers.

    Args:
        name: of the data or the model, above the headline.
        headline: the one sentence.
        sheets: of samples (m, *data_shape), "null" or "best", and the label over them; at most two.
        scale: of all pictures, see `scale_of`.
        facts: numbers and what they are.
        image: whether the samples are pictures; else the numbers stand alone.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.3), dpi=100, facecolor="#fcfbf9")
    FigureCanvasAgg(figure)
    plain: dict[str, Any] = {"parse_math": False, "color": "#20262d"}

    def write(x: float, y: float, text: str, size: float, **style: Any) -> None:
        figure.text(x, y, text, **{**plain, "fontsize": size, "va": "top", **style})

    write(0.045, 0.93, f"LATENTFIT    {name}"[:90], 13, color="#6a727c", family="DejaVu Sans")
    lines = _wrap(headline.replace("`", ""), 70).split("\n")
    size = 21 if len(lines) <= MOST_LINES else 17
    lines = lines if len(lines) <= MOST_LINES else _wrap(headline.replace("`", ""), 88).split("\n")
    write(0.045, 0.87, "\n".join(lines), size, family="DejaVu Serif", linespacing=1.35)
    x = 0.045
    if image and sheets and all(len(images) for images, _, _ in sheets):
        for images, css, label in sheets:
            write(x, 0.6, label, 13, color=COLOURS[css])
            axes = figure.add_axes((x, 0.065, 0.255, 0.255 * 12 / 6.3))
            axes.imshow(
                _sheet(_pixels(images[:36], scale, CELL)), cmap="gray", vmin=0, vmax=255, interpolation="nearest"
            )
            axes.set_axis_off()
            x += 0.275
        x += 0.035
    for i, (value, caption) in enumerate(fact for fact in facts if fact[0]):
        write(x, 0.56 - 0.17 * i, value, 24, color=COLOURS["best"])
        write(x, 0.49 - 0.17 * i, _wrap(caption, 44), 12, color="#525a63", linespacing=1.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100, format="png", facecolor=figure.get_facecolor())
    return buffer.getvalue()


def _sheet(pixels: np.ndarray, n: int = 6) -> np.ndarray:
    _, height, width, channels = pixels.shape
    sheet = np.full((n * (height + 1), n * (width + 1), channels), 252, np.uint8)
    for i, image in enumerate(pixels):
        top, left = i // n * (height + 1), i % n * (width + 1)
        sheet[top : top + height, left : left + width] = image
    return sheet.squeeze(-1) if channels == 1 else sheet


def _pixels(images: np.ndarray, scale: tuple[float, float, bool], largest: int) -> np.ndarray:
    low, high, ink = scale
    array = _hwc(np.asarray(images, dtype=np.float64))  # (m, H, W, C)
    thin = math.ceil(max(array.shape[1:3]) / largest)
    if thin > 1:  # block means, so that thin strokes do not vanish
        height, width = (size // thin * thin for size in array.shape[1:3])
        blocks = array[:, :height, :width].reshape(len(array), height // thin, thin, width // thin, thin, -1)
        array = blocks.mean(axis=(2, 4))
    unit = np.nan_to_num(np.clip((array - low) / (high - low), 0.0, 1.0))
    return np.round(255 * (1 - unit if ink else unit)).astype(np.uint8)


def _hwc(images: np.ndarray) -> np.ndarray:
    if images.ndim == 3:
        return images[..., None]
    return np.moveaxis(images, 1, -1) if images.shape[1] in (1, 3) else images


def _wrap(text: str, width: int) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(text, width))
