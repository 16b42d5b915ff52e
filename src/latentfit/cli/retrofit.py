"""`latentfit retrofit`: a better prior for a trained VAE, its weights untouched unless asked for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from latentfit.cli.diagnosis import Shown
from latentfit.cli.models import check_folder, in_own_units
from latentfit.cli.options import Groups, grouped, names_in, one_of
from latentfit.cli.parts import Parts
from latentfit.cli.program import app, note
from latentfit.cli.subject import Asked
from latentfit.errors import InputError


@app.command()
@grouped
def retrofit(
    context: typer.Context,
    asked: Asked,
    shown: Shown,
    groups: Groups = None,
    out: Annotated[Path | None, typer.Option(help="folder for the fitted prior, or the fine-tuned model")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="replace what the folder holds")] = False,
    finetune: Annotated[
        bool, typer.Option("--finetune", help="then train a copy on under the prior kept: its codes move")
    ] = False,
    goal: Annotated[
        str, typer.Option(help="likelihood or samples: what decides", callback=one_of("likelihood", "samples"))
    ] = "likelihood",
    priors: Annotated[
        str | None, typer.Option(help="names, such as mixture,nsf; by default those of the depth")
    ] = None,
    max_minutes: Annotated[float | None, typer.Option(help="of all fits together")] = None,
) -> None:
    """Fit a better prior to a trained VAE's codes; no weight is touched, but for --finetune, a copy's."""
    asked.check("retrofit")
    shown.check()
    if max_minutes is not None and not (math.isfinite(max_minutes) and max_minutes > 0):
        raise InputError(f"--max-minutes must be above 0, got {max_minutes:g}.")
    if priors is not None and not names_in(priors):
        raise InputError("--priors is empty; give names such as mixture,nsf (latentfit methods lists them).")
    if out is not None:
        check_folder(out, fresh)
    codes = asked.codes()
    if codes is not None and goal == "samples":
        raise InputError("--goal samples needs a decoder, not codes alone: give RUN or --model.")
    if codes is not None and finetune:
        raise InputError("--finetune trains encoder and decoder, not codes alone: give RUN or --model.")
    if finetune and out is not None and asked.model is not None:
        raise InputError(
            "--finetune with --out saves models that Latentfit trained; of your own the copy is fix.model in Python: "
            "fix = latentfit.retrofit(model, X, finetune=True)."
        )
    from latentfit.cli import subject

    if codes is not None:
        from latentfit.cli.latents import read_latents

        given = subject.codes_subject(read_latents(codes, groups, asked.mean_key, asked.var_key))
    else:
        given = subject.subject(asked, groups=groups, lang=shown.lang)
    from latentfit import retrofit as run
    from latentfit.diagnosis.latents import DEPTHS
    from latentfit.estimator import save
    from latentfit.saving import check_writable

    if out is not None:
        check_writable(out, overwrite=fresh)
    # rows without training rows beside them are split by `retrofit` itself
    train, test = (given.test, None) if given.train is None else (given.train, given.test)
    with Parts(lang=shown.lang) as parts:
        fix: Any = run(
            given.model,
            train,
            X_test=test,
            groups=given.groups,
            goal=goal,
            priors=DEPTHS["quick" if shown.quick else shown.depth] if priors is None else names_in(priors),
            max_minutes=max_minutes,
            finetune=finetune,
            random_state=shown.seed,
            lang=shown.lang,
            progress=parts,
        )
    fix = given.named(fix)
    shown.tell(fix, context.obj, given.built_in)
    if out is None:
        return
    if finetune and fix.finetuned.won.name == "fine-tuned":
        model = fix.model if asked.run is None else in_own_units(asked.run, fix.model, train)
        save(model, out, overwrite=fresh)
        note(f"Model       {out.as_posix()}/")
        note(f'Python      latentfit.load("{out.as_posix()}").sample(100)')
        return
    if not fix.changed:
        note("Prior       the old one fits: nothing was kept, so nothing is saved")
        return
    save(fix.prior, out, overwrite=fresh)
    note(f"Prior       {out.as_posix()}/")
    note(f'Python      latentfit.priors.load("{out.as_posix()}").sample(100)')
