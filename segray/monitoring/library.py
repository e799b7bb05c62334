"""The progress of a run that Python code has called: a bar in a terminal or a notebook, lines elsewhere, and a log.

Knows which of these a program wants. console.py prints bars and lines.
"""

from __future__ import annotations

import html
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from segray._dates import duration
from segray._system.logger import LOGGER, is_heard
from segray.execution.progress import ProgressListener
from segray.monitoring import console

_UPDATE_EVERY_S = 0.25
_SHOWN_NOTES = 6


class LogLines(console.Plain):
    """Progress as records of the logger `segray`, of level INFO: notes at once, counts every ten seconds."""

    def note(self, text: str) -> None:
        LOGGER.info("%s", text)


class Notebook(ProgressListener):
    """Progress as a bar in the output of a notebook's cell, with the latest notes below.

    show: shows HTML, and returns a function that replaces it.
    """

    def __init__(self, show: Callable[[str], Callable[[str], None]]) -> None:
        self._show = show
        self._update: Callable[[str], None] = _show_nothing
        self._meter = console.RateMeter()
        self._notes: list[str] = []
        self._done, self._counts, self._updated_s = 0, "starting workers", 0.0

    def note(self, text: str) -> None:
        self._notes = [*self._notes, text][-_SHOWN_NOTES:]
        self._update(self._page())

    def begin(self, images: int, resumed: int) -> None:
        self._meter, self._done = console.RateMeter(images, resumed), resumed
        self._update(self._page())

    def advance(self, done: int, instances: int, failed: int) -> None:
        now_s = time.monotonic()
        rate = self._meter.update(done, now_s)
        if done > self._done:
            speed = f"{rate:.1f} images/s, {duration(self._meter.eta_s(done))} left, " if rate else ""
            self._counts = f"{speed}{instances} instances, {failed} failed"
        self._done = done
        if now_s - self._updated_s >= _UPDATE_EVERY_S:
            self._updated_s = now_s
            self._update(self._page())

    def _page(self) -> str:
        images = self._meter.images
        bar = f'<progress value="{self._done}" max="{images}"></progress> {self._done}/{images} {self._counts}'
        notes = "<br>".join(html.escape(note) for note in self._notes)
        return f"{bar}<br>{notes}" if images else notes or "planning"

    def __enter__(self) -> Self:
        self._update = self._show(self._page())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._update(self._page())


def _show_nothing(page: str) -> None:
    """Show nothing: the listener is not entered yet."""


def listener(*, progress: bool) -> console.Plain | console.Bar | Notebook:
    """Return what shows the progress of a run in this program.

    progress: whether to show a bar or lines. Without them the logger alone gets lines. Lines go to standard error,
    unless the program's logging shows them.
    """
    if not progress:
        return LogLines()
    if (show := notebook_output()) is not None:
        return Notebook(show)
    if sys.stderr is not None and console.redraws(sys.stderr):
        return console.Bar()
    return LogLines() if is_heard() else console.Plain()


def notebook_output() -> Callable[[str], Callable[[str], None]] | None:
    """Return what shows HTML in the notebook whose kernel this process is; None in any other process."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if getattr(shell, "kernel", None) is None:
        return None
    from IPython.display import HTML, display

    def show(page: str) -> Callable[[str], None]:
        handle: Any = display(HTML(page), display_id=True)
        return lambda changed: handle.update(HTML(changed))

    return show
