"""The program around the commands: its streams, and what is said when something goes wrong."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from latentfit.errors import LatentfitError, LatentfitWarning

INTERRUPTED = 130

#: Python's arguments in messages -> what they are here
TYPED = {
    "labels_key": "--labels",
    "groups_key": "--groups",
    "drop": "--drop",
    "X_train": "--train-data",
    "max_steps": "--max-steps",
    "likelihood": "--likelihood",
    "kl_weight": "--kl-weight",
    "reconstruction": "--reconstruction",
    "spread": "--spread",
    "output": "--output-kind",
    "device": "--device",
    "overwrite": "--fresh",
}


#: see `note_of_rows`; of the command that runs
said_of_rows: list[str] = []


@dataclass(frozen=True)
class Session:
    """What every command knows: the line that was typed, and what the streams can show."""

    command: str
    ascii: bool


class _Program(TyperGroup):
    """The group of commands; whatever goes wrong is one line on stderr and an exit code."""

    def main(  # type: ignore[override]  # the base's optional arguments, by name
        self,
        args: Any = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        arguments = list(sys.argv[1:] if args is None else args)
        said_of_rows.clear()
        # threads that wait would spin on the core another worker needs; jobs themselves use one thread each
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        extra.setdefault("obj", Session(_typed(arguments), _prepare_streams()))
        with warnings.catch_warnings():
            _plain_warnings()
            try:
                code = super().main(arguments, "latentfit", complete_var, standalone_mode=False, **extra)
            except Exception as error:
                code = _explain(error)
        code = code if isinstance(code, int) else 0
        if standalone_mode:
            sys.exit(code)
        return code

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # before typer makes a bare exit code of it
            raise typer.Exit(_interrupted()) from None


def screen(stream: Any) -> dict[str, Any]:
    """Whether a stream is watched, and how many characters its lines may have: {"live", "width"}."""
    live = bool(stream.isatty()) and os.environ.get("TERM") != "dumb"
    asked_for = live or os.environ.get("COLUMNS", "").isdigit()
    columns = shutil.get_terminal_size((80, 24)).columns if asked_for else 80
    return {"live": live, "width": min(100, max(40, columns))}


app = typer.Typer(
    cls=_Program,
    name="latentfit",
    help="What the N(0, I) prior costs your VAE, at least, in nats, and how to win it back.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """The entry point of `latentfit` and of `python -m latentfit`."""
    app()


@app.callback(invoke_without_command=True)
def _program(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
) -> None:
    from latentfit import __version__

    if version:
        print(f"latentfit {__version__}")
    elif context.invoked_subcommand is None:
        print(context.get_help())


def _typed(arguments: list[str]) -> str:
    """The command line without --fresh, so that typing it again resumes."""
    words = ["latentfit", *(word for word in arguments if word != "--fresh")]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def _prepare_streams() -> bool:
    """Make both streams swallow any letter; returns whether they showed ASCII only before."""
    encoding = (getattr(sys.stdout, "encoding", None) or "ascii").lower().replace("_", "-")
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError, OSError):
            stream.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]  # where it can
    return encoding not in ("utf-8", "utf8", "utf-8-sig")


def _plain_warnings() -> None:
    """Warnings of Latentfit's own are one line each, once; other libraries' are for developers."""
    told: set[str] = set()

    def show(message: Any, category: Any, *_: Any, **__: Any) -> None:
        text = typed_words(" ".join(str(message).split()))
        if text not in told:
            told.add(text)
            print(f"Note: {text}", file=sys.stderr)

    if not _debugging():
        warnings.simplefilter("ignore")
        # worker processes: what they warn of stands in the table's footnotes
        os.environ.setdefault("PYTHONWARNINGS", "ignore")
    warnings.simplefilter("always", LatentfitWarning)
    warnings.showwarning = show


def note(text: str) -> None:
    """A line for people, beside the result."""
    print(text, file=sys.stderr, flush=True)


def note_of_rows(text: str) -> None:
    """What was done to the rows before anything was measured: said at once, and kept for the result's JSON."""
    note(text)
    said_of_rows.append(text)


def typed_words(text: str) -> str:
    """A message with the options' names in place of Python's arguments.

    >>> typed_words("use it as labels: labels_key='b', or give X_train= too (or spread=...)")
    'use it as labels: --labels b, or give --train-data too (or --spread ...)'
    """

    def typed(found: re.Match[str]) -> str:
        value = found["value"].strip("'\"")
        return TYPED[found["name"]] if value in ("", "True") else f"{TYPED[found['name']]} {value}"

    names = "|".join(TYPED)
    return re.sub(rf"\b(?P<name>{names})=(?P<value>'[^']*'|\"[^\"]*\"|\.\.\.|True|)", typed, text)


def _interrupted() -> int:
    note("Interrupted: nothing is half-written; the same command starts again.")
    return INTERRUPTED


def _debugging() -> bool:
    return os.environ.get("LATENTFIT_DEBUG", "") not in ("", "0")


def _explain(error: Exception) -> int:
    """One line on stderr; the exit code."""
    if _debugging():
        import traceback

        traceback.print_exc()
    text, code = " ".join(str(error).split()), 2
    if isinstance(error, typer.Abort):  # what typer makes of Ctrl-C
        return _interrupted()
    if isinstance(error, LatentfitError):
        text = typed_words(text)
    elif hasattr(error, "format_message"):  # typer's usage errors
        where = getattr(getattr(error, "ctx", None), "command_path", "latentfit")
        text = f"{' '.join(error.format_message().split()).rstrip('.')}. Help: {where} --help"
    elif isinstance(error, OSError):
        place = f" {error.filename}" if error.filename else ""
        text = f"Cannot read or write{place}: {error.strerror or error}. What was finished is kept."
    elif isinstance(error, MemoryError) or type(error).__name__ == "TerminatedWorkerError":
        text = "A process ended, perhaps for want of memory. Finished jobs are kept; again with --workers 1?"
    else:
        text, code = (
            f"{type(error).__name__}: {text[:300]} (a bug: LATENTFIT_DEBUG=1 shows where; please report it)",
            1,
        )
    print(f"Error: {text}", file=sys.stderr)
    return code
