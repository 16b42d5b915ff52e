"""`latentfit compare` and `latentfit report`."""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from latentfit.cli.options import (
    AsJson,
    BatchSize,
    Config,
    Data,
    DataDir,
    Device,
    Lang,
    LatentDim,
    LearningRate,
    Likelihood,
    MaxSteps,
    Network,
    Open,
    Run,
    Seed,
    browse,
    check_lang,
    check_run,
)
from latentfit.cli.program import INTERRUPTED, Session, app
from latentfit.errors import InputError, LatentfitWarning


@app.command()
def compare(
    context: typer.Context,
    data: Data = "digits",
    methods: Annotated[str, typer.Option(help="auto, all, or names: mixture,realnvp")] = "auto",
    n_seeds: Annotated[int, typer.Option(min=1, help="trainings of each method")] = 3,
    goal: Annotated[str, typer.Option(help="likelihood, samples or embedding: what decides")] = "likelihood",
    max_minutes: Annotated[float | None, typer.Option(help="for the whole command; turned into steps once")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="at most 10,000 rows and a third of the steps")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="processes; by default one a core, at most 8")] = None,
    out: Annotated[Path | None, typer.Option(help="the run's folder; runs/DATA by default")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="start over instead of resuming")] = False,
    backend: Annotated[str, typer.Option(help="serial, loky, dask or ray")] = "loky",
    likelihood: Likelihood = None,
    latent_dim: LatentDim = None,
    network: Network = None,
    max_steps: MaxSteps = None,
    batch_size: BatchSize = None,
    learning_rate: LearningRate = None,
    device: Device = "cpu",
    labels: Annotated[str | None, typer.Option(help="FILE.npy, a column, or obs:COLUMN: scores the embedding")] = None,
    data_dir: DataDir = None,
    seed: Seed = 0,
    lang: Lang = "en",
    as_json: AsJson = False,
    show: Open = False,
    config: Config = None,
) -> None:
    """Compare what the prior costs and what each remedy wins back; the same command resumes."""
    session: Session = context.obj
    check_lang(lang)
    from latentfit.comparison.plan import folder_name
    from latentfit.comparison.run import compare as run
    from latentfit.data.readers import load_array
    from latentfit.data.sources import load
    from latentfit.report.terminal import Terminal

    own_file = labels is not None and labels.endswith(".npy")
    if own_file and not Path(str(labels)).is_file():
        raise InputError(f"--labels {labels} does not exist.")
    source = load(data, data_dir, labels_key=None if own_file else labels)
    folder = out if out is not None else Path("runs") / folder_name(data)
    terminal = Terminal(
        sys.stderr if as_json else sys.stdout,
        command=session.command,
        folder=folder,
        lang=lang,
        ascii=session.ascii,
        **_screen(sys.stderr if as_json else sys.stdout),
    )
    # said once, in the table's footnote
    warnings.filterwarnings("ignore", "Importance sampling is unreliable", LatentfitWarning)
    try:
        found = run(
            source,
            out=folder,
            labels=load_array(Path(str(labels))) if own_file else None,
            backend=backend,
            workers=workers,
            fresh=fresh,
            lang=lang,
            listener=terminal,
            command=session.command,
            methods=methods,
            n_seeds=n_seeds,
            goal=goal,
            likelihood=likelihood,
            latent_dim=latent_dim,
            network=network,
            max_steps=max_steps,
            batch_size=batch_size,
            learning_rate=learning_rate,
            max_minutes=max_minutes,
            quick=quick,
            random_state=seed,
            device=device,
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
    """Write a run's report anew, from its stored numbers; nothing is computed."""
    check_lang(lang)
    from latentfit.comparison.result import Comparison
    from latentfit.report.outputs import write_report

    check_run(run)
    comparison = Comparison.read(run)
    path = comparison.report(output, lang=lang, title=title) if output else write_report(comparison, run, lang, title)
    print(path.as_posix())
    if show:
        browse(path)


def _screen(stream: Any) -> dict[str, Any]:
    live = bool(stream.isatty()) and os.environ.get("TERM") != "dumb"
    return {
        "live": live,
        "width": min(100, max(40, shutil.get_terminal_size((80, 24)).columns)) if live else 80,
    }
