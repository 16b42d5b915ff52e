"""`latentfit diagnose`: what the prior costs a trained VAE, and what else is wrong."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from latentfit.cli.options import AsJson, Groups, Labels, Lang, Open, Seed, browse, grouped, one_of
from latentfit.cli.parts import Parts
from latentfit.cli.program import Session, app, note, said_of_rows, screen
from latentfit.cli.subject import Asked
from latentfit.errors import InputError

#: `--fail-above` was exceeded
TOO_WIDE = 1


@dataclass(frozen=True)
class Shown:
    """The options of how the result is shown."""

    depth: Annotated[str, typer.Option(help="full, or quick: without the flow", callback=one_of("full", "quick"))] = (
        "full"
    )
    quick: Annotated[bool, typer.Option("--quick", help="the same as --depth quick")] = False
    report: Annotated[Path | None, typer.Option(help="FILE.html to write")] = None
    show_data: Annotated[bool, typer.Option("--show-data", help="pictures of the data may be in the report")] = False
    show: Open = False
    seed: Seed = 0
    lang: Lang = "en"
    as_json: AsJson = False

    def check(self) -> None:
        """Whatever can be refused before anything is imported."""
        if self.report is None:
            for name, value in (("--open", self.show), ("--show-data", self.show_data)):
                if value:
                    raise InputError(f"{name} is about the report: give --report FILE.html too.")
        elif self.report.suffix.lower() not in (".html", ".htm") or self.report.is_dir():
            raise InputError(f"--report {self.report.as_posix()} must be a file that ends in .html.")
        elif not self.report.parent.is_dir():
            raise InputError(f"--report {self.report.as_posix()}: there is no folder {self.report.parent.as_posix()}.")

    def tell(self, result: Any, session: Session, built_in: bool = False) -> None:
        """The page, then the result: JSON, or the table."""
        if self.report is not None:
            path = result.report(self.report, lang=self.lang, show_data=self.show_data or built_in)
            note(f"Report      {Path(path).as_posix()}")
        if self.as_json:
            numbers = result.to_dict()
            numbers["notes"] = said_of_rows + numbers["notes"]
            print(json.dumps(numbers, indent=1, ensure_ascii=False, allow_nan=False))
        else:
            from latentfit.diagnosis.catalogue import plain

            text = result.summary(width=screen(sys.stdout)["width"]) if hasattr(result, "summary") else str(result)
            print(plain(text) if session.ascii else text)
        if self.report is not None and self.show:
            browse(self.report)


@app.command()
@grouped
def diagnose(
    context: typer.Context,
    asked: Asked,
    shown: Shown,
    goal: Annotated[
        str | None,
        typer.Option(
            help="likelihood, samples or embedding: what the model is for",
            callback=one_of("likelihood", "samples", "embedding"),
        ),
    ] = None,
    probe: Annotated[bool, typer.Option("--probe", help="train a copy on: does N(0, I) press on the encoder?")] = False,
    labels: Labels = None,
    groups: Groups = None,
    fail_above: Annotated[
        float | None, typer.Option(help="NATS: exit code 1 if the prior gap is certainly wider")
    ] = None,
) -> None:
    """What is wrong with a trained VAE, and what its prior costs, at least, in nats."""
    asked.check("diagnose")
    shown.check()
    if fail_above is not None and not math.isfinite(fail_above):
        raise InputError(f"--fail-above must be a number of nats, got {fail_above:g}.")
    codes, built_in = asked.codes(), False
    depth: Any = "quick" if shown.quick else shown.depth
    dx: Any
    if codes is not None:
        _refuse_what_needs_a_model(probe, labels, goal, shown.report)
        from latentfit.cli.latents import read_latents

        arrays = read_latents(codes, groups, asked.mean_key, asked.var_key)
        from latentfit.diagnosis.latents import diagnose_latents

        with Parts(lang=shown.lang) as parts:
            parts("prior gap", 0, 0)
            dx = diagnose_latents(**arrays, depth=depth, random_state=shown.seed, lang=shown.lang)
    else:
        from latentfit import diagnose as run
        from latentfit.cli.subject import subject

        given = subject(asked, labels, groups, shown.lang)
        built_in = given.built_in
        with Parts(lang=shown.lang) as parts:
            dx = run(
                given.model,
                given.test,
                X_train=given.train,
                labels=given.labels,
                groups=given.groups,
                goal=goal or "likelihood",
                depth=depth,
                probe=probe,
                random_state=shown.seed,
                lang=shown.lang,
                progress=parts,
            )
        dx = given.named(dx)
        dx = replace(dx, setting=replace(dx.setting, retrofit_command=asked.retrofit_command(groups)))
    shown.tell(dx, context.obj, built_in)
    if fail_above is not None:
        low = dx.prior_gap.interval[0]
        wide = low > fail_above
        from latentfit.diagnosis.catalogue import say

        key = "diagnosis.gate.wide" if wide else "diagnosis.gate"
        words = {"gap": dx.prior_gap, "low": f"{low:.3g}", "limit": f"{fail_above:g}", "code": TOO_WIDE}
        note(say(key, shown.lang, **words))
        if wide:
            raise typer.Exit(TOO_WIDE)


def _refuse_what_needs_a_model(probe: bool, labels: str | None, goal: str | None, report: Path | None) -> None:
    for name, value in (("--probe", probe), ("--labels", labels), ("--goal", goal)):
        if value:
            raise InputError(f"{name} needs a model, not codes alone: give RUN or --model.")
    if report is not None:
        raise InputError("--report: a diagnosis of codes alone has no page; --json gives its numbers.")
