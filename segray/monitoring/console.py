"""The terminal: progress during a run, and its summary.

Knows how progress and summary are printed. Knows nothing of how the numbers are counted. A terminal gets a bar with
images/s and ETA. A job log, a file or a notebook gets plain lines at intervals.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from segray._dates import duration
from segray.execution.progress import ProgressListener
from segray.limits import CONFIDENT_SCORE

if TYPE_CHECKING:
    from segray.execution.run import Summary

_LINE_EVERY_S = 10.0
# Progress before the first image of a run.
_STARTING = "starting workers"
# Values of TERM for terminals that cannot redraw a line.
_DUMB_TERMINALS = ("dumb", "unknown")


class Plain(ProgressListener):
    """Progress as lines of text: notes at once, counts every ten seconds."""

    def __init__(self, out: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._out, self._clock = out or sys.stderr, clock
        self._meter = RateMeter()
        self._printed_s = 0.0

    def note(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", file=self._out, flush=True)

    def begin(self, images: int, resumed: int) -> None:
        self._meter = RateMeter(images, resumed)
        self._printed_s = self._clock()

    def advance(self, done: int, instances: int, failed: int) -> None:
        now_s = self._clock()
        rate = self._meter.update(done, now_s)
        if now_s - self._printed_s >= _LINE_EVERY_S:
            self._printed_s = now_s
            rate_and_eta = f", {rate:.1f} images/s, {duration(self._meter.eta_s(done))} left" if rate else ""
            counts = f"{instances} instances, {failed} failed{rate_and_eta}"
            self.note(f"{done}/{self._meter.images} images, {counts if self._meter.has_begun else _STARTING}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class Quiet(ProgressListener):
    """No progress at all."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class Bar(ProgressListener):
    """Progress as a bar that redraws itself."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

        columns = (
            SpinnerColumn(), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"),
        )  # fmt: skip
        self._bar = Progress(*columns, console=Console(stderr=True))
        self._task = self._bar.add_task("planning", total=None)
        self._meter = RateMeter()

    def note(self, text: str) -> None:
        self._bar.console.print(text, highlight=False, markup=False)

    def begin(self, images: int, resumed: int) -> None:
        self._meter = RateMeter(images, resumed)
        self._bar.reset(self._task, total=images, completed=resumed, description=_STARTING)

    def advance(self, done: int, instances: int, failed: int) -> None:
        rate = self._meter.update(done, time.monotonic())
        eta = duration(self._meter.eta_s(done))
        text = f"{rate:.1f} images/s, {eta} left, {instances} instances, {failed} failed"
        self._bar.update(self._task, completed=done, description=text if rate else _STARTING)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()


class RateMeter:
    """A meter of the mean rate in images/s since the first image of this process, and of the time left."""

    def __init__(self, images: int = 0, resumed: int = 0) -> None:
        self.images = images
        self._first: tuple[float, int] | None = None
        self._seen = resumed
        self._rate = 0.0

    @property
    def has_begun(self) -> bool:
        """Return whether an image of this process is done."""
        return self._first is not None

    def update(self, done: int, now_s: float) -> float:
        """Return the mean rate in images/s after `done` images; 0 before a rate can be measured."""
        if self._first is None:
            if done > self._seen:
                self._first = (now_s, done)
        elif now_s > self._first[0]:
            self._rate = (done - self._first[1]) / (now_s - self._first[0])
        return self._rate

    def eta_s(self, done: int) -> float | None:
        """Return the seconds until all images are done; None without a rate."""
        return (self.images - done) / self._rate if self._rate else None


def listener(*, quiet: bool = False) -> Plain | Bar | Quiet:
    """Return a bar if stderr is a terminal that redraws lines, else plain lines; nothing if `quiet`."""
    if quiet:
        return Quiet()
    return Bar() if redraws(sys.stderr) else Plain()


def redraws(out: TextIO, environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether a stream is a terminal that redraws lines.

    A notebook and most CI services keep each redraw as a line of its own. Source: JPY_PARENT_PID is set for each
    process that a Jupyter kernel starts, CI by all usual services.
    """
    keeps_redraws = "JPY_PARENT_PID" in environ or environ.get("CI", "false").lower() not in ("", "0", "false")
    return out.isatty() and not keeps_redraws and environ.get("TERM", "").lower() not in _DUMB_TERMINALS


def as_record(summary: Summary) -> dict[str, Any]:
    """Return the whole summary for a program.

    published_share: seconds of merging and committing over all seconds. Publishing runs beside labelling.
    """
    return {
        **asdict(summary),
        "images_per_s": round(rate(summary), 3),
        "published_share": round(_published_share(summary), 4),
        "next": "the same command with --retry-failed" if summary.exit_code else f"segray verify {summary.root}",
    }


def rate(summary: Summary) -> float:
    """Return images/s from the first worker's readiness to the last commit."""
    return summary.tally.images / summary.seconds if summary.seconds else 0.0


def _published_share(summary: Summary) -> float:
    return (summary.tally.merge_s + summary.tally.commit_s) / max(summary.seconds, 1e-9)


def describe(summary: Summary, pictures: str = "") -> str:
    """Return the summary for a person: results, failures, next steps.

    pictures: what to look at; by default the command that draws a contact sheet.
    """
    counts, images = summary.tally, summary.images
    lines = []
    if summary.retired:
        lines.append(f"retired {summary.retired} images that the source no longer lists")
    if counts.images:
        lines.append(
            f"labelled {counts.images} images in {duration(summary.seconds)} ({rate(summary):.1f} images/s, "
            f"workers ready after {summary.startup_s:.1f} s): {counts.instances} instances of any score"
        )
        lines.append(
            f"merging files took {counts.merge_s:.1f} s and committing {counts.commit_s:.1f} s, "
            f"{_published_share(summary):.0%} of the time; the workers went on meanwhile"
        )
    by_status = ", ".join(f"{images[name]} {name}" for name in ("ok", "empty", "failed") if images.get(name))
    lines.append(f"the label set holds {sum(images.values())} images ({by_status or 'none'})")
    if summary.classes:
        lines.append(_headline(summary))
        lines += _class_lines(summary.classes, summary.confident)
    if counts.replaced_files:
        lines.append(_about_replaced_files(summary))
    if counts.dropped:
        lines.append("dropped: " + ", ".join(f"{count} {name}" for name, count in sorted(counts.dropped.items())))
    if counts.guessed_depths:
        lines.append(
            "16-bit samples read as fewer bits, because none is larger: "
            + ", ".join(f"{count} images as {depth} bits" for depth, count in sorted(counts.guessed_depths.items()))
            + "; image.bit_depth sets the bits of all images, 16 reads them as stored"
        )
    for key, stage, message in summary.failures:
        lines.append(f"failed: {key}: {stage}: {message.splitlines()[0] if message else ''}")
    if before := summary.failed_before:
        stages = ", ".join(f"{count} at {stage}" for stage, count in before.items())
        lines.append(f"failed in earlier runs: {stages}; label these images again: --retry-failed")
    lines += summary.passed_over.get("notes", [])
    if summary.exit_code:
        of_runs = summary.of_runs
        share = of_runs.get("failed", 0) / max(1, sum(of_runs.values()))
        lines.append(f"{share:.1%} of the images of this run failed, more than max_failed_fraction allows: exit code 3")
    lines += ["", *next_steps(summary.root, pictures)]
    return "\n".join(lines)


def _headline(summary: Summary) -> str:
    """Return the number of instances of the label set, the confident ones first."""
    total = sum(summary.classes.values())
    if summary.confident is None:
        return f"{total:,} instances of any score"
    confident = sum(summary.confident.values())
    return f"{confident:,} instances of score {CONFIDENT_SCORE:g} and more ({total:,} in all)"


def _class_lines(classes: Mapping[str, int], confident: Mapping[str, int] | None, most: int = 10) -> list[str]:
    """Return the instances of the `most` most frequent classes, one class a line."""
    if confident is None:
        lines = [f"  {count:>9,}  {name}" for name, count in classes.items()]
    else:
        in_order = sorted(classes, key=lambda name: (-confident.get(name, 0), -classes[name], name))
        lines = [f"  {confident.get(name, 0):>9,}  {name} ({classes[name]:,} in all)" for name in in_order]
    if len(lines) > most:
        lines[most:] = [f"             and {len(lines) - most} more classes"]
    return lines


def _about_replaced_files(summary: Summary) -> str:
    files = "1 data file" if summary.tally.replaced_files == 1 else f"{summary.tally.replaced_files:,} data files"
    return (
        f"replaced {files}: readers of the log see the current rows alone. The plain glob also counts replaced rows, "
        f"until `segray maintain {shlex.quote(summary.root)} --grace-hours 0` deletes the replaced files"
    )


def next_steps(root: str, pictures: str = "") -> list[str]:
    """Return lines with the URIs of the tables, a command that queries the tables, and what to look at."""
    query = f"SELECT class_name, count(*) AS n FROM instances WHERE score >= {CONFIDENT_SCORE:g} GROUP BY ALL"
    install = "" if importlib.util.find_spec("duckdb") else "pip install duckdb && "
    return [
        f"tables:  {root}/instances  {root}/images",
        f'query:   {install}segray sql {shlex.quote(root)} "{query}"',
        f"look at: {pictures or f'segray sheet {shlex.quote(root)}'}",
    ]
