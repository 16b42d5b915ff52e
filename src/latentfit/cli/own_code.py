"""Objects in the user's own code, by uvicorn's words: FILE.py:NAME or package.module:NAME."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from latentfit.cli.program import note
from latentfit.errors import InputError


def module_of(target: str, option: str = "--model") -> tuple[str, str]:
    """FILE.py:NAME or package.module:NAME -> (what to import, the object's name)."""
    place, _, name = target.rpartition(":")
    if not place or not name or not all(part.isidentifier() for part in name.split(".")):
        raise InputError(f"{option} {target} must be FILE.py:NAME, as in my_vae.py:vae.")
    if place.endswith(".py") and not Path(place).is_file():
        raise InputError(f"{option} {target}: the file {place} does not exist.")
    if not place.endswith(".py") and not all(part.isidentifier() for part in place.split(".")):
        raise InputError(f"{option} {target} must be FILE.py:NAME or package.module:NAME.")
    meant = Path(place).with_suffix(".py")
    if meant.suffix != Path(place).suffix != "" and meant.is_file():  # a file is no package: nothing of it is run
        raise InputError(f"{option} {target}: {place} is neither a file nor a module. Did you mean {meant}:{name}?")
    return place, name


def imported(target: str, option: str) -> Any:
    """The object that the user's own code calls NAME. Running that code is what they asked for, and it is said.

    Raises:
        InputError: no such object; or the code failed, with the line.
    """
    place, name = module_of(target, option)
    here = str(Path(place).resolve().parent if place.endswith(".py") else Path.cwd())
    sys.path.insert(0, here)  # its neighbours, as `python FILE.py` finds them
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is the result's
            module = _of_file(Path(place).resolve()) if place.endswith(".py") else _of_package(place)
    except (Exception, SystemExit) as error:
        detail = " ".join(str(error).split())[:200].rstrip(".")
        raise InputError(
            f"{option} {target}: {place} failed with {type(error).__name__}: {detail}{_line(error, place)}."
        ) from error
    finally:
        sys.path.remove(here)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            names = ", ".join([key for key in vars(module) if not key.startswith("_")][:12])
            raise InputError(f"{option} {target}: {place} has no {name!r}; it has {names or 'nothing'}.")
        found = getattr(found, part)
    return found


def _of_package(name: str) -> ModuleType:
    if name not in sys.modules:
        note(f"Running {name}, your own code.")
    return importlib.import_module(name)


def _of_file(path: Path) -> ModuleType:
    """A file as a module; once, also where model and data are in the same file."""
    name = path.stem
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known
    note(f"Running {path.name}, your own code.")
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("not a Python file")
    module = importlib.util.module_from_spec(spec)
    if known is None:  # data classes look their module up; no other module is replaced
        sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if known is None:
            del sys.modules[name]
        raise
    return module


def _line(error: BaseException, place: str) -> str:
    """Where in the user's file it happened."""
    if isinstance(error, SyntaxError):
        return "" if error.lineno is None else f" (line {error.lineno})"
    trace, number = error.__traceback__, None
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(Path(place).resolve()):
            number = trace.tb_lineno
        trace = trace.tb_next
    return "" if number is None else f" (line {number})"
