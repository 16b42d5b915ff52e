"""A folder of images as one array."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from latentfit.data.readers import Table, require_package
from latentfit.errors import InputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm")


def read_folder(path: Path) -> Table:
    """The images of a folder and its folders, in order of their names: (N, H, W), or (N, 3, H, W) in colour.

    Images in folders of their own are labelled with the folder's name.

    Raises:
        InputError: no images, one that cannot be read, or one that differs from the first in size or colour.
        MissingExtraError: Pillow is not installed.
    """
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
    if not files:
        raise InputError(f"{path} holds no images; looked for {', '.join(IMAGE_SUFFIXES)}.")
    require_package("PIL", "images", path)
    first = _pixels(files[0])
    x = np.empty((len(files), *first.shape), first.dtype)
    for i, file in enumerate(files):
        pixels = _pixels(file)
        if pixels.shape != first.shape or pixels.dtype != first.dtype:
            raise InputError(
                f"{file} is {_describe(pixels)}, but {files[0].name} is {_describe(first)}; "
                "all images must have the same size and colours."
            )
        x[i] = pixels
    labels = np.array([file.parent.relative_to(path).as_posix() for file in files])
    return Table(x, labels if len(set(labels)) > 1 else None)


def _pixels(file: Path) -> np.ndarray:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            # palettes and transparency are storage, not data
            plain = image if image.mode in ("1", "L", "I;16", "I", "F", "RGB") else image.convert("RGB")
            pixels = np.asarray(plain)
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError):
        raise InputError(f"{file} cannot be read as an image; remove or repair it.") from None
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8)
    return pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _describe(pixels: np.ndarray) -> str:
    height, width = pixels.shape[-2:]
    return f"{width}x{height} {'colour' if pixels.ndim == 3 else 'grey'} {pixels.dtype}"
