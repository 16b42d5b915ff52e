"""What the command line shows of a comparison: plan, stages, a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from latentfit.comparison.jobs import read_arrays
from latentfit.comparison.plan import Job, Plan, job_folder
from latentfit.comparison.result import Comparison
from latentfit.diagnosis.catalogue import clause, counted, groups_sentence, plain, say
from latentfit.diagnosis.findings import Finding
from latentfit.errors import LatentfitError
from latentfit.report.text import as_text, duration, findings_text, wrapped
from latentfit.training.progress import clock

if TYPE_CHECKING:
    from latentfit.data.prepared import PreparedData
    from latentfit.data.sources import Source
    from latentfit.data.splits import Splits

STAGES = 3
#: expected seconds above which a shorter command is proposed
LONG = 30 * 60
_LABEL, _BAR, _SHORTEST_BAR = 12, 26, 5


class Terminal:
    """The `Listener` of the command line.

    Args:
        stream: where everything goes.
        command: what was typed, proposed again to resume.
        folder: the run's folder.
        lang: "en" or "vi".
        live: whether a bar is drawn; without it every finished job is a line.
        ascii: for streams without utf-8.
        width: characters of a line.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        command: str,
        folder: Path,
        lang: str = "en",
        live: bool = False,
        ascii: bool = False,
        width: int = 80,
    ) -> None:
        self.stream, self.command, self.folder = stream, command, folder
        self.lang, self.live, self.ascii, self.width = lang, live, ascii, width
        self.plan: Plan | None = None
        self.units = say("unit.rows", lang)
        self.n_selection = 0
        self.finished: list[tuple[Job, float]] = []
        self._workers, self._stage = 1, 0
        self._since = self._last = time.perf_counter()
        self._bar: Any = None
        self._told_findings = False
        self._next = "terminal.next"

    # the listener

    def planned(self, plan: Plan, source: Source, data: PreparedData, splits: Splits, workers: int) -> None:
        """Print what will be done and about how long it takes, before anything long starts."""
        from latentfit import __version__

        self.plan, self._workers = plan, workers
        self.n_selection = min(len(splits.selection), plan.settings["max_scored"])
        recipe = plan.settings["recipe"]
        self.units = say("unit.images" if len(plan.settings["model"]["data_shape"]) > 1 else "unit.rows", self.lang)
        device = self._say(
            "terminal.device" if workers > 1 else "terminal.device.one",
            device=recipe["device"],
            workers=workers,
        )
        head = f"latentfit {__version__}   {device}   {self.folder.as_posix()}"
        resume = f"({self._say('terminal.resume')})"
        fits = len(head) + 2 + len(resume) <= self.width
        self.write(f"{head}  {resume}" if fits else f"{head}\n{'':{_LABEL}}{resume}")
        self.write("")
        self._labelled("data", [clause(source.origin, self.lang)])
        self._next = "terminal.next" if source.built_in else "terminal.next.own"
        sizes = splits.sizes()
        lines = [say("terminal.split", self.lang, **sizes, seed=plan.settings["random_state"])]
        if source.groups is not None:
            lines.append(groups_sentence(len(np.unique(source.groups)), self.lang))
        self._labelled("split", lines)
        lines = [self._say("terminal.likelihood", likelihood=data.description, reason=clause(data.reason, self.lang))]
        if data.alternatives:
            lines.append(self._say("terminal.likelihood.other", others=" | ".join(data.alternatives)))
        self._labelled("likelihood", [*lines, *(clause(note, self.lang) for note in data.notes)])
        seconds = plan.seconds(workers)
        what = "terminal.plan" if plan.n_seeds > 1 else "terminal.plan.one"
        lines = [
            self._say(
                what,
                methods=counted("method", len(plan.methods), self.lang),
                seeds=plan.n_seeds,
                jobs=counted("training", len(plan.methods) * plan.n_seeds, self.lang),
                steps=plan.max_steps,
                duration=duration(seconds, self.lang),
            )
        ]
        if plan.rungs:
            lines.append(self._say("terminal.plan.post_hoc", rungs=", ".join(plan.rungs)))
        self._labelled("plan", lines)
        if seconds > LONG:
            self._lines(say("terminal.plan.long", self.lang, minutes=LONG // 60, command=shorter(self.command)))
        if recipe["device"] == "cpu" and _gpu_is_free():
            self._lines(say("terminal.device.free", self.lang))
        self.write("")

    def stage(self, number: int, plan: Plan, findings: list[Finding] | None) -> None:
        """End the stage before, with its time, and begin this one."""
        self._end_stage()
        if findings is not None:
            self.findings(findings)
        self._stage, self._since = number, time.perf_counter()
        self._last = self._since
        if not self.live:
            self.write(self._title())
            return
        from rich.console import Console
        from rich.progress import Progress, ProgressColumn
        from rich.text import Text

        terminal = self

        class Line(ProgressColumn):
            max_refresh = 0.25

            def render(self, task: Any) -> Text:
                return Text(terminal.status(), no_wrap=True, overflow="crop")

        console = Console(file=self.stream, width=self.width, highlight=False, markup=False)
        self._bar = Progress(Line(), console=console, transient=True, refresh_per_second=4)
        self._bar.add_task("")
        self._bar.start()

    def job_done(self, job: Job, result: dict[str, Any], done: int, total: int, seconds: float) -> None:
        """Count a finished job, or one that was already there (0 seconds)."""
        self.finished.append((job, seconds))
        self._last = time.perf_counter()
        if "failed" in result:
            waiting = total - done
            self._lines(
                say(
                    "terminal.job.failed",
                    self.lang,
                    method=job.method,
                    seed=job.seed + 1,
                    reason=result["failed"],
                    n=waiting,
                )
            )
            return
        if self.live:
            return
        kept = "terminal.job.kept" if seconds == 0 else "terminal.job"
        took = duration(seconds, self.lang)
        name = job.method if job.kind == "joint" else self._say("word.post hoc")
        self.write(self._say(kept, done=done, total=total, method=name, seed=job.seed + 1, duration=took))

    # what comes after

    def done(self, comparison: Comparison) -> None:
        """The findings, the leaderboard, the verdict, and where everything is."""
        self._end_stage()
        self.findings(comparison.findings)
        self.write("")
        self.write(as_text(comparison, lang=self.lang, width=self.width, ascii=self.ascii))
        self.write("")
        folder = self.folder.as_posix()
        self._labelled("report", [f"{folder}/report.html"])
        held = comparison.recommended
        fitted = self._say(f"word.{held.fitted}")
        self._labelled("model", [f"{folder}/best/ ({held.method}, {fitted})"])
        self._labelled("python", [self._say("terminal.python", path=f"{folder}/best")])
        self._labelled("next", [self._say(self._next, folder=folder)])

    def findings(self, findings: list[Finding]) -> None:
        """The diagnosis of the N(0, I) model, once."""
        if not self._told_findings:
            self._told_findings = True
            self.write(findings_text(findings, lang=self.lang, width=self.width, ascii=self.ascii))

    def interrupted(self) -> None:
        """What is done, and how to go on."""
        self.close()
        if self.plan is None:
            return
        partial = partial_table(self.folder, self.plan, self.lang)
        if partial:
            self.write("")
            self._lines(say("terminal.partial", self.lang))
            self.write("\n".join(partial))
        total = len(self.plan.first) + len(self.plan.second)
        self.write("")
        done = len(self.finished)
        self._lines(say("terminal.interrupted", self.lang, done=done, total=total))
        self.write(f"  {self.command}")  # on one line, to be copied

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def write(self, text: str) -> None:
        """One or more lines."""
        print(plain(text) if self.ascii else text, file=self.stream, flush=True)

    # inside

    def _say(self, key: str, **parameters: Any) -> str:
        text = say(key, self.lang, **parameters)
        return plain(text) if self.ascii else text

    def _lines(self, text: str) -> None:
        for line in wrapped(text, self.width):
            self.write(line)

    def _labelled(self, label: str, texts: Sequence[str]) -> None:
        head = say(f"terminal.{label}.label", self.lang)
        for text in texts:
            for line in wrapped(text, self.width - _LABEL):
                self.write(f"{head:<{_LABEL}}{line}")
                head = ""

    def _title(self) -> str:
        name = ("null", "remedies", "scoring")[self._stage - 1]
        what = self._say(
            f"terminal.stage.{name}",
            **({"n": self.n_selection, "units": self.units} if name == "scoring" else {}),
        )
        return f"{self._say('terminal.stage', stage=self._stage, stages=STAGES)}  {what}"

    def _end_stage(self) -> None:
        self.close()
        if self._stage:
            took = clock(time.perf_counter() - self._since)
            self.write(_apart(self._title(), took, self.width) if self.live else f"{'':8}{took}")
        self._stage = 0

    def status(self) -> str:
        """The live line: what is done of this stage, and the time left."""
        title, plan = self._title(), self.plan
        if self._stage == STAGES or plan is None:
            return _apart(title, clock(time.perf_counter() - self._since), self.width)
        jobs = plan.first if self._stage == 1 else plan.second
        keys = {job.key for job in jobs}
        done = sum(job.key in keys for job, _ in self.finished)
        seconds = self._seconds_left(jobs)
        left = f"   {self._say('terminal.left', left=clock(seconds))}" if seconds > 0 else ""
        tail = f"  {done}/{len(jobs)}{left}"
        size = min(_BAR, self.width - len(title) - len(tail) - 4)  # a narrow window keeps the time, not the bar
        filled = round(size * done / max(1, len(jobs)))
        bar = f"  [{'#' * filled}{'-' * (size - filled)}]" if size >= _SHORTEST_BAR else ""
        return f"{title}{bar}{tail}"

    def _seconds_left(self, jobs: Sequence[Job]) -> float:
        """By what such jobs took, else by the plan, scaled as it was wrong so far; below 0: unknown."""
        if self.plan is None:
            return 0.0
        took: dict[tuple[str, str], list[float]] = {}
        planned = 0.0
        for job, seconds in self.finished:
            if seconds:
                took.setdefault((job.kind, job.method), []).append(seconds)
                planned += self.plan.job_seconds(job)
        scale = sum(map(sum, took.values())) / planned if planned else 1.0
        over = {job.key for job, _ in self.finished}
        waiting = [job for job in jobs if job.key not in over]
        left = 0.0
        for job in waiting:
            known = took.get((job.kind, job.method))
            left += float(np.mean(known)) if known else scale * self.plan.job_seconds(job)
        return left / max(1, min(self._workers, len(waiting))) - (time.perf_counter() - self._last)


def partial_table(folder: Path, plan: Plan, lang: str = "en") -> list[str]:
    """The finished rows of an unfinished comparison: mean paired gain over the seeds that are done."""
    scores: dict[str, dict[int, np.ndarray]] = {}
    for job in [*plan.first, *plan.second]:
        place = job_folder(folder, job)
        if not (place / "result.json").exists():
            continue
        keys = [job.method] if job.kind == "joint" else [f"{rung}@standard" for rung in plan.rungs]
        for key in keys:
            try:
                scores.setdefault(key, {})[job.seed] = read_arrays(place, key)["selection_log_px"]
            except LatentfitError:  # a damaged file: the rerun will say so
                continue
    null = scores.get("standard", {})
    rows = []
    for key, values in scores.items():
        paired = [float(np.mean(values[s] - null[s])) for s in values if s in null]
        if paired:
            method, _, base = key.partition("@")
            fitted = say("word.post hoc" if base else "word.jointly", lang)
            log_px = float(np.mean([np.mean(value) for value in values.values()]))
            rows.append((float(np.mean(paired)), method, fitted, f"{len(paired)}/{plan.n_seeds}", f"{log_px:.1f}"))
    if not rows:
        return []
    rows.sort(reverse=True)
    head = [say(f"column.{name}", lang) for name in ("method", "fitted", "gain", "log_px", "seeds")]
    cells = [[m, f, "0  " if m == "standard" else f"{gain:+.1f}", p, n] for gain, m, f, n, p in rows]
    widths = [max(len(row[i]) for row in [head, *cells]) for i in range(5)]
    return [
        " " + "  ".join(t.ljust(w) if i < 2 else t.rjust(w) for i, (t, w) in enumerate(zip(row, widths, strict=True)))
        for row in [head, *cells]
    ]


def shorter(command: str) -> str:
    """The command that asks for less; --fresh, because the folder already holds the long plan.

    >>> shorter("latentfit compare mnist --methods all")
    'latentfit compare mnist --quick --fresh'
    >>> shorter("latentfit compare mnist --quick --max-minutes 20")
    'latentfit compare mnist --quick --max-minutes 20 --n-seeds 1 --fresh'
    """
    less = next((more for more in ("--quick", "--max-minutes 20") if more.split()[0] not in command), "--n-seeds 1")
    words = re.sub(rf" ({less.split()[0]}|--methods|--max-steps)[ =]\S+| --fresh", "", command)
    return f"{words} {less} --fresh"


def _gpu_is_free() -> bool:
    import torch

    return torch.cuda.is_available()


def _apart(left: str, right: str, width: int) -> str:
    """A line with a text at either end; what is too long of the left one is cut."""
    room = width - len(right) - 2
    left = left if len(left) <= room else left[: room - 3] + "..."
    return f"{left:<{room}}  {right}"
