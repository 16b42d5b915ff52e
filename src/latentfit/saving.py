"""config.json and safetensors, written atomically and read into memory; a pickle is never loaded.

Every file appears whole or not at all: it is written beside its place, flushed to the disk and moved there.
Nothing is memory-mapped, because Windows cannot replace a mapped file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import struct
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentfit.errors import InputError, LatentfitError, SavedFileError
from latentfit.registry import Component, registry

FORMAT_VERSION = 1
CONFIG, TENSORS, CARD = "config.json", "model.safetensors", "README.md"
#: the entry, and the component's attribute, for how it was trained; folders of 0.1 have none
TRAINED = "trained"

_KEY = "latentfit"
#: virus scanners and indexers hold a new file on Windows for a moment
_REPLACE_WAITS = (0.01, 0.05, 0.1, 0.25, 0.5)


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part, also after a power cut.

    Args:
        path: where; its folder is made if need be.
        data: bytes, or text (utf-8).

    Raises:
        SavedFileError: it cannot be written (full disk, no permission); the old file is untouched.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "runs" / "note.txt"
        >>> write_atomic(path, "1.57")
        >>> path.read_text(encoding="utf-8")
        '1.57'
    """
    path = Path(path)
    raw = data.encode("utf-8") if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name[:24]}.{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        _replace(temporary, path)
    except OSError as error:
        raise SavedFileError(f"Cannot write {path}: {_reason(error)}.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def read_json(path: str | Path) -> Any:
    """The content of a JSON file.

    Raises:
        SavedFileError: the file is missing, unreadable or no JSON.
    """
    try:
        return json.loads(_read_bytes(path))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SavedFileError(f"{path} is damaged (no valid JSON: {error}).") from error


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and JSON metadata as one safetensors file, with the SHA-256 of both inside.

    Args:
        path: where, ending in .safetensors.
        tensors: by name; of any device, shape and dtype. Shared memory is stored once per name.
        meta: anything JSON can hold.

    Raises:
        SavedFileError: the file cannot be written.
    """
    from safetensors.torch import save

    plain, seen = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        plain[name] = tensor.clone() if storage in seen else tensor  # safetensors refuses shared memory
        seen.add(storage)
    text = json.dumps(meta)
    write_atomic(path, save(plain, {_KEY: text, "sha256": _digest(plain, text)}))


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote, checked against its SHA-256.

    Returns:
        The tensors by name, on the CPU and in memory of their own, and the metadata.

    Raises:
        SavedFileError: the file is missing, truncated, edited, or not written by Latentfit.

    Example:
        >>> import tempfile, torch
        >>> path = tempfile.mkdtemp() + "/codes.safetensors"
        >>> save_tensors(path, {"z": torch.zeros(2, 3)}, {"rows": 2})
        >>> tensors, meta = load_tensors(path)
        >>> tensors["z"].shape, meta
        (torch.Size([2, 3]), {'rows': 2})
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    raw = _read_bytes(path)
    try:
        (size,) = struct.unpack("<Q", raw[:8])
        stored = json.loads(raw[8 : 8 + size]).get("__metadata__", {})
        tensors = load(raw)
    except (struct.error, ValueError, AttributeError, KeyError, OverflowError, SafetensorError) as error:
        raise SavedFileError(f"{path} is damaged (truncated or no safetensors file).") from error
    if _KEY not in stored or "sha256" not in stored:
        raise SavedFileError(f"{path} was not written by Latentfit (no checksum inside).")
    if _digest(tensors, stored[_KEY]) != stored["sha256"]:
        raise SavedFileError(f"{path} is damaged (checksum).")
    return tensors, json.loads(stored[_KEY])


def save_component(
    component: nn.Module,
    directory: str | Path,
    *,
    overwrite: bool = False,
    card: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Save a component as a folder: config.json, model.safetensors and a README.md card.

    Args:
        component: a registered `Component` that is an `nn.Module`.
        directory: the folder; it appears whole or not at all.
        overwrite: replace a folder saved earlier. Any other folder that is not empty is never touched.
        card: the README's text; a short one by default.
        extra: further JSON entries for config.json.

    Returns:
        The folder.

    Raises:
        InputError: not a registered component, or the folder is taken.
        SavedFileError: it cannot be written.
    """
    from latentfit import __version__

    directory = Path(directory)
    if not isinstance(component, Component) or not isinstance(component, nn.Module) or not component.name:
        raise InputError(f"save: got {type(component).__name__}, expected a registered Latentfit component.")
    _refuse_taken(directory, overwrite)
    # latentfit's own keys come last: `extra` must not be able to break the file
    config = {
        **(extra or {}),
        "format_version": FORMAT_VERSION,
        "latentfit_version": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "family": component.family,
        **component.config(),
    }
    if getattr(component, TRAINED, None) is not None:
        config[TRAINED] = getattr(component, TRAINED)
    temporary = directory.with_name(f".{directory.name[:24]}.{uuid.uuid4().hex[:8]}")
    try:
        write_atomic(temporary / CONFIG, json.dumps(config, indent=2) + "\n")
        save_tensors(temporary / TENSORS, component.state_dict(), {"family": component.family, "name": component.name})
        write_atomic(temporary / CARD, card if card is not None else _card(config))
        _replace_directory(temporary, directory)
    except LatentfitError:
        raise
    except OSError as error:
        raise SavedFileError(f"Cannot write {directory}: {_reason(error)}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return directory


def load_component(directory: str | Path, *, map_location: str | torch.device = "cpu", **externals: Any) -> Any:
    """Rebuild what `save_component` wrote.

    Args:
        directory: the folder.
        map_location: the device.
        externals: your own modules by the name config.json gives them; their weights are loaded too.

    Returns:
        The component, in eval mode.

    Raises:
        SavedFileError: a missing or damaged file, another program's folder, an unknown format version, or
        tensors that
            do not match the configuration.
        InputError: a module of your own is needed and not given.
    """
    directory = Path(directory)
    config = read_config(directory)
    tensors, _ = load_tensors(directory / TENSORS)
    try:
        component = registry.build(config["family"], {"name": config["name"], "args": config["args"]}, externals)
    except InputError as error:
        if "load(...," in str(error):  # a module of the user's own is missing: nothing is wrong with the file
            raise
        raise SavedFileError(f"{directory / CONFIG} does not describe a component of this version: {error}") from error
    stored = {tensors[name].dtype for name, _ in component.named_parameters() if name in tensors}
    if len(stored) == 1:  # saved after double(), say
        component.to(stored.pop())
    try:
        component.load_state_dict(tensors)
    except RuntimeError as error:
        detail = " ".join(str(error).split(":", 1)[-1].split())[:160]
        raise SavedFileError(f"{directory / TENSORS} does not match {CONFIG} ({detail}).") from error
    if isinstance(config.get(TRAINED), dict):
        setattr(component, TRAINED, config[TRAINED])
    return component.to(map_location).eval()


def read_config(directory: str | Path) -> dict[str, Any]:
    """The checked config.json of a saved folder.

    Raises:
        SavedFileError: no folder of Latentfit's, or of a version this one does not know.
    """
    path = Path(directory) / CONFIG
    if not path.parent.is_dir():
        raise SavedFileError(f"{directory} is not a folder; expected one that Latentfit saved.")
    if not path.is_file():
        best = path.parent / "best"
        hint = f" The model of a comparison is in {best.as_posix()}." if (best / CONFIG).is_file() else ""
        raise SavedFileError(f"{directory} was not saved by Latentfit: it has no {CONFIG}.{hint}")
    config = read_json(path)
    if not isinstance(config, dict) or "format_version" not in config or "latentfit_version" not in config:
        raise SavedFileError(f"{directory} was not saved by Latentfit: its {CONFIG} has no latentfit_version.")
    if config["format_version"] != FORMAT_VERSION:
        raise SavedFileError(
            f"{directory} has format version {config['format_version']!r} (latentfit "
            f"{config['latentfit_version']}); this version reads {FORMAT_VERSION}. "
            "Try: pip install --upgrade latentfit."
        )
    missing = [key for key in ("family", "name", "args") if key not in config]
    if missing:
        raise SavedFileError(f"{path} is damaged (no {', '.join(missing)}).")
    return config


def is_saved(directory: str | Path) -> bool:
    """Whether a folder is one that `save_component` wrote."""
    try:
        read_config(directory)
    except SavedFileError:
        return False
    return True


def check_writable(directory: str | Path, overwrite: bool) -> None:
    """Refuse, before anything long starts, a folder that `save_component` could not write afterwards.

    Raises:
        InputError: the folder is taken.
        SavedFileError: it cannot be made.
    """
    directory = Path(directory)
    _refuse_taken(directory, overwrite)
    if directory.exists():
        return
    missing = [p for p in (directory, *directory.parents) if not p.exists()]
    try:
        directory.mkdir(parents=True)
        for made in missing:  # only a probe: a run that fails leaves no empty folder
            made.rmdir()
    except OSError as error:
        raise SavedFileError(f"Cannot make the folder {directory.as_posix()}: {_reason(error)}.") from error


def _refuse_taken(directory: Path, overwrite: bool) -> None:
    if not directory.exists() and not directory.is_symlink():
        return
    if not directory.is_dir():
        raise InputError(f"{directory} is a file; save needs a folder's name.")
    if not any(directory.iterdir()):
        return
    foreign = not is_saved(directory) or not {entry.name for entry in directory.iterdir()} <= {CONFIG, TENSORS, CARD}
    if not overwrite:
        remedy = "another folder" if foreign else "overwrite=True or another folder"
        raise InputError(f"{directory} exists and is not empty. Use {remedy}.")
    if foreign:
        raise InputError(
            f"{directory} holds files that Latentfit did not save, so overwrite=True leaves it alone. "
            "Use another folder."
        )


def _replace_directory(new: Path, old: Path) -> None:
    """`os.replace` refuses a folder that is not empty: the old one steps aside, and back if that fails."""
    if not old.exists():
        _replace(new, old)
        return
    aside = old.with_name(f".{old.name[:24]}.{uuid.uuid4().hex[:8]}")
    _replace(old, aside)
    try:
        _replace(new, old)
    except BaseException:
        _replace(aside, old)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _replace(source: Path, target: Path) -> None:
    for wait in _REPLACE_WAITS:
        try:
            return os.replace(source, target)
        except PermissionError:
            time.sleep(wait)
    return os.replace(source, target)


def _read_bytes(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise SavedFileError(f"{path} is missing.") from None
    except OSError as error:
        raise SavedFileError(f"Cannot read {path}: {_reason(error)}.") from error


def weights_sha256(*modules: nn.Module, without: str = "") -> str:
    """SHA-256 of all parameters and buffers of some modules: the same only if every byte is.

    Args:
        modules: read where they are, left as they are; none at all give "".
        without: entries of `state_dict` that begin with it are left out.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> before = weights_sha256(net)
        >>> _ = net.weight.data.mul_(2.0)
        >>> weights_sha256(net) == before
        False
    """
    tensors = {
        f"{i}.{name}": value.detach().cpu()
        for i, module in enumerate(modules)
        for name, value in module.state_dict().items()
        if isinstance(value, Tensor) and not (without and name.startswith(without))
    }
    return _digest(tensors, "") if modules else ""


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    """SHA-256 over names, dtypes, shapes, contents and the metadata; independent of the order in the file."""
    digest = hashlib.sha256(text.encode("utf-8"))
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.clone(memory_format=torch.contiguous_format).reshape(-1)  # a length of 1 may have stride 0
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _card(config: Mapping[str, Any]) -> str:
    return (
        f"# {config['family']} `{config['name']}`\n\n"
        f"Saved by latentfit {config['latentfit_version']} on {config['created']}. "
        f"{CONFIG} says how it is built, {TENSORS} holds its weights.\n\n"
        "    import latentfit as lf\n"
        '    component = lf.load("this/folder")\n'
    )


def _reason(error: OSError) -> str:
    return error.strerror or str(error) or type(error).__name__
