"""MNIST's file format, and the two sets that come in it: found on disk, or downloaded and checked."""

from __future__ import annotations

import gzip
import hashlib
import os
import tempfile
import urllib.request
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from latentfit.errors import InputError

#: third byte of the magic number -> dtype, big-endian (http://yann.lecun.com/exdb/mnist)
DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
TIMEOUT_S = 20


@dataclass(frozen=True, slots=True)
class IdxSet:
    """Four idx files under one name.

    Attributes:
        name: what users type.
        title: what they read.
        mirrors: base addresses, tried in this order.
        sha256: of each file's content *uncompressed*, because mirrors compress the same bytes differently.
    """

    name: str
    title: str
    mirrors: tuple[str, ...]
    sha256: dict[str, str]


MNIST = IdxSet(
    name="mnist",
    title="MNIST",
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
        "https://raw.githubusercontent.com/fgnt/mnist/master/",
        "http://yann.lecun.com/exdb/mnist/",
    ),
    sha256={
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
)
FASHION_MNIST = IdxSet(
    name="fashion-mnist",
    title="Fashion-MNIST",
    mirrors=(
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
    sha256={
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
)
IDX_SETS = {known.name: known for known in (MNIST, FASHION_MNIST)}


def read_idx(path: Path) -> np.ndarray:
    """The array of an idx file, gzipped or not.

    Raises:
        InputError: unreadable, truncated, or not an idx file.
    """
    return parse_idx(read_bytes(path), path)


def read_bytes(path: Path) -> bytes:
    """A file's content, uncompressed where it is gzipped (told by its first bytes, not by its name)."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from None
    if raw[:2] != b"\x1f\x8b":
        return raw
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError, zlib.error):
        raise InputError(f"{path} is truncated or damaged (not a complete gzip file); fetch it again.") from None


def parse_idx(content: bytes, path: Path) -> np.ndarray:
    """The array that idx bytes describe; `path` is for messages."""
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in DTYPES or content[3] == 0:
        raise InputError(f"{path} is not an idx file: it begins with {content[:4].hex(' ') or 'nothing'}.")
    dtype, n_axes = np.dtype(DTYPES[content[2]]), content[3]
    start = 4 + 4 * n_axes
    shape = tuple(int.from_bytes(content[4 + 4 * k : 8 + 4 * k], "big") for k in range(n_axes))
    expected = dtype.itemsize * int(np.prod(shape, dtype=object))
    if len(content) < start or len(content) - start != expected:
        raise InputError(
            f"{path} is truncated or damaged: its header promises {expected:,} bytes of data "
            f"(shape {shape}), it holds {max(len(content) - start, 0):,}."
        )
    array = np.frombuffer(content, dtype, offset=start).reshape(shape)
    return array.astype(dtype.newbyteorder("="))


def load_idx_set(known: IdxSet, data_dir: Path | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images (N, H, W) uint8, labels (N,) uint8 and is_test (N,) bool; training rows first.

    Looks in `data_dir`, `$LATENTFIT_DATA` and `data`, and in each one's folder named as the set; downloads
    to the first of these if it finds nothing.

    Raises:
        InputError: a damaged file, or none and no network.
    """
    contents = _find(known, data_dir) or _download(known, data_dir)
    arrays = [parse_idx(contents[file], Path(file)) for file in FILES]
    images = np.concatenate([arrays[0], arrays[2]])
    labels = np.concatenate([arrays[1], arrays[3]])
    return images, labels, np.arange(len(images)) >= len(arrays[0])


def _roots(data_dir: Path | None) -> list[Path]:
    environment = os.environ.get("LATENTFIT_DATA")
    roots = [data_dir, Path(environment) if environment else None, Path("data")]
    return list(dict.fromkeys(root for root in roots if root is not None))


def _find(known: IdxSet, data_dir: Path | None) -> dict[str, bytes] | None:
    # a set's own folder comes first: MNIST and Fashion-MNIST have the same file names
    for folder in [folder for root in _roots(data_dir) for folder in (root / known.name, root)]:
        paths = [_present(folder, file) for file in FILES]
        if not all(paths):
            continue
        contents = {file: read_bytes(path) for file, path in zip(FILES, paths, strict=True) if path}
        wrong = [file for file in FILES if _sha256(contents[file]) != known.sha256[file]]
        if not wrong:
            return contents
        if not _is_sister(known, contents):
            raise InputError(
                f"{_present(folder, wrong[0])} is not {known.title}'s (SHA-256 of its content "
                f"{_sha256(contents[wrong[0]])[:12]}..., expected {known.sha256[wrong[0]][:12]}...). "
                "Delete it to have it downloaded again."
            )
    return None


def _present(folder: Path, file: str) -> Path | None:
    return next((path for path in (folder / f"{file}.gz", folder / file) if path.is_file()), None)


def _is_sister(known: IdxSet, contents: dict[str, bytes]) -> bool:
    digests = {file: _sha256(content) for file, content in contents.items()}
    return any(other.sha256 == digests for other in IDX_SETS.values() if other is not known)


def _download(known: IdxSet, data_dir: Path | None) -> dict[str, bytes]:
    root = _roots(data_dir)[0]
    packed: dict[str, bytes] = {}
    for file in FILES:
        for mirror in known.mirrors:
            raw = _fetch(f"{mirror}{file}.gz")
            if raw is not None and _sha256(_unpacked(raw)) == known.sha256[file]:
                packed[file] = raw
                break
        else:
            raise InputError(
                f"{known.title} is not in {root.as_posix()}/ and could not be downloaded "
                f"({len(known.mirrors)} mirrors "
                "tried, no network?). Put t10k-images-idx3-ubyte.gz and its three sisters into "
                f"{root.as_posix()}/, "
                "or run: latentfit compare digits. Checksums: latentfit datasets."
            )
    folder = root / known.name
    for file, raw in packed.items():
        _write(folder / f"{file}.gz", raw)
    return {file: _unpacked(raw) for file, raw in packed.items()}


def _fetch(address: str) -> bytes | None:
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT_S) as reply:
            return reply.read()
    except (OSError, ValueError):  # no network, no such file, a reply that is no HTTP
        return None


def _unpacked(raw: bytes) -> bytes:
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError, zlib.error):
        return b""


def _write(path: Path, raw: bytes) -> None:
    """Whole or not at all: a download that is cut off leaves nothing under the final name."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(raw)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}; choose another data_dir.") from None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
