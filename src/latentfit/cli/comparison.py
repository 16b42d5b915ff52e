"""`latentfit compare` and `latentfit report`."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

from latentfit.cli.marks import read_marks, split_marks
from latentfit.cli.models import refuse_unfinished
from latentfit.cli.options import (
    AsJson,
    Config,
    DataDir,
    DataOrDigits,
    Drop,
    Groups,
    Labels,
    Lang,
    Open,
    Run,
    Seed,
    Training,
    browse,
    grouped,
    names_in,
    one_of,
)
from latentfit.cli.program import INTERRUPTED, Session, app, screen
from latentfit.errors import InputError, LatentfitWarning


@app.command()
@grouped
def compare(
    context: typer.Context,
    training: Training,
    data: DataOrDigits = "digits",
    methods: Annotated[str, typer.Option(help="auto, all, or names: mixture,realnvp")] = "auto",
    n_seeds: Annotated[int, typer.Option(min=1, help="trainings of each method")] = 3,
    goal: Annotated[
        str,
        typer.Option(
            help="likelihood, samples or embedding: what decides",
            callback=one_of("likelihood", "samples", "embedding"),
        ),
    ] = "likelihood",
    max_minutes: Annotated[float | None, typer.Option(help="for the whole command; turned into steps once")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="at most 10,000 rows, 1,000 scored, a third of the steps")
    ] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="processes; by default one a core, at most 8")] = None,
    out: Annotated[Path | None, typer.Option(help="the run's folder; runs/DATA by default")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="start over instead of resuming")] = False,
    backend: Annotated[
        str, typer.Option(help="serial, loky, dask or ray", callback=one_of("serial", "loky", "dask", "ray"))
    ] = "loky",
    labels: Labels = None,
    groups: Groups = None,
    drop: Drop = None,
    data_dir: DataDir = None,
    seed: Seed = 0,
    lang: Lang = "en",
    as_json: AsJson = False,
    show: Open = False,
    config: Config = None,
) -> None:
    """Compare what the prior costs and what each remedy wins back.

    The same command resumes; with other --methods, --n-seeds or --goal it runs what is new.
    """
    session: Session = context.obj
    from latentfit.comparison.plan import folder_name
    from latentfit.comparison.run import compare as run
    from latentfit.data.sources import load
    from latentfit.report.terminal import Terminal

    labels_file, labels_column = split_marks(labels)
    groups_file, groups_column = split_marks(groups)
    source = load(data, data_dir, labels_key=labels_column, groups_key=groups_column, drop=names_in(drop))
    folder = out if out is not None else Path("runs") / folder_name(data)
    terminal = Terminal(
        sys.stderr if as_json else sys.stdout,
        command=session.command,
        folder=folder,
        lang=lang,
        ascii=session.ascii,
        **screen(sys.stderr if as_json else sys.stdout),
    )
    # said once, in the table's footnote
    warnings.filterwarnings("ignore", "Importance sampling is unreliable", LatentfitWarning)
    try:
        found = run(
            source,
            out=folder,
            labels=None if labels_file is None else read_marks("--labels", labels_file, len(source)),
            groups=None if groups_file is None else read_marks("--groups", groups_file, len(source)),
            backend=backend,
            workers=workers,
            fresh=fresh,
            lang=lang,
            listener=terminal,
            command=session.command,
            methods=methods,
            n_seeds=n_seeds,
            goal=goal,
            max_minutes=max_minutes,
            quick=quick,
            random_state=seed,
            **dataclasses.asdict(training),
        )
        terminal.done(found)
    except KeyboardInterrupt:
        terminal.interrupted()
        raise typer.Exit(INTERRUPTED) from None
    finally:
        terminal.close()
    if as_json:
        print(found.to_json())
    if show:
        browse(folder / "report.html")


@app.command()
def report(
    run: Run,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="RUN/report.html by default")] = None,
    title: Annotated[str | None, typer.Option(help="of the page")] = None,
    lang: Lang = "en",
    show: Open = False,
) -> None:
    """Write a run's report anew from its stored numbers."""
    from latentfit.comparison.result import Comparison
    from latentfit.report.outputs import write_report
    from latentfit.saving import is_saved

    if is_saved(run):
        raise InputError(
            f"{run.as_posix()} is a model, not a comparison, and has no report of its own: latentfit diagnose "
            f"{run.as_posix()} --data DATA --report FILE.html"
        )
    refuse_unfinished(run)
    comparison = Comparison.read(run)
    path = comparison.report(output, lang=lang, title=title) if output else write_report(comparison, run, lang, title)
    print(path.as_posix())
    if show:
        browse(path)
