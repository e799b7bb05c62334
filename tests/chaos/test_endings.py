"""Signals that ask a run to end, at every stage of it: exit code, seconds, what is left, what the next run does.

pytest tests/chaos/test_endings.py                         each signal once, at moments that change from run to run
SEGRAY_ENDINGS=all pytest -s tests/chaos/test_endings.py   every signal at every moment; -s shows what was seen
SEGRAY_SEED=...                                      the same moments again
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from clusters import command_of, marked
from command import ENV, write_config
from command import segray as command

import segray
from segray.label_set.validation import verify
from segray.storage.store import StorageOptions
from segray.synthetic import dataset

pytestmark = pytest.mark.chaos

IMAGES = 24
SEED = int(os.environ["SEGRAY_SEED"])
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
# A terminal waits 2 s; a machine that has other things to do may take longer.
ENDED_WITHIN_S, GONE_WITHIN_S = 10, 20


@dataclass
class Run:
    """`segray label` on its way, in a session of its own. lines: of stderr."""

    root: Path
    process: subprocess.Popen[str]
    mark: dict[str, str]
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(self.process.stderr)

    @property
    def errors(self) -> str:
        self._reader.join(10)
        return "".join(self.lines)

    def said(self, words: str) -> bool:
        return any(words in line for line in list(self.lines))

    def runs(self, words: str) -> bool:
        return any(words in command_of(pid) for pid in marked(self.mark))

    def record(self) -> str:
        with suppress(OSError, ValueError):
            for path in self.root.glob("_segray/runs/*/run.json"):
                return str(json.loads(path.read_text())["state"])
        return ""

    def printed(self) -> bool:
        assert self.process.stdout is not None
        return bool(self.process.stdout.readline())


MOMENTS: dict[str, Callable[[Run], object]] = {
    "before Ray starts": lambda run: run.said("images to label"),
    "Ray starts": lambda run: run.runs("gcs_server"),
    "workers start": lambda run: run.runs("ray::_Actor"),
    "labelling": lambda run: list(run.root.glob("_segray/runs/*/staged/*.arrow")),
    "merging": lambda run: list(run.root.glob("instances/class=*/*.parquet")),
    "committing": lambda run: (run.root / "instances/_delta_log/00000000000000000001.json").exists(),
    "report": lambda run: run.record() == "done",
    "the very end": lambda run: run.printed(),
}
# Of each signal another moment, and of the next seed the next ones.
SOME = [(number, list(MOMENTS)[(SEED + 2 * i) % len(MOMENTS)]) for i, number in enumerate(SIGNALS)]
ALL = [(number, moment) for moment in MOMENTS for number in SIGNALS]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    dataset.write(folder, IMAGES, seed=11)
    return folder / "images"


def _heard() -> None:
    """Undo what tests in the background of a script, or started by nohup, would hand on to the run."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def begin(config: Path, root: Path, mark: dict[str, str], *inside: str) -> Run:
    process = subprocess.Popen(
        [*inside, sys.executable, "-m", "segray", "label", "--config", str(config)],
        env={**os.environ, **ENV, **mark},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_heard,
    )
    return Run(root, process, mark)


def wait(moment: Callable[[Run], object], run: Run, within_s: float = 120) -> None:
    deadline = time.monotonic() + within_s
    while not moment(run):
        assert run.process.poll() is None, run.errors
        assert time.monotonic() < deadline, run.errors
        time.sleep(0.005)


def gone(mark: dict[str, str], within_s: float) -> float:
    """After how many seconds none of its processes is left."""
    began = time.monotonic()
    while list(marked(mark)):
        assert time.monotonic() - began < within_s, [command_of(pid) for pid in marked(mark)]
        time.sleep(0.05)
    return time.monotonic() - began


@pytest.mark.parametrize(
    ("number", "moment"),
    ALL if os.environ.get("SEGRAY_ENDINGS") == "all" else SOME,
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else value.name,
)
def test_a_run_that_is_asked_to_end_ends_and_the_next_one_completes(
    tmp_path: Path, scenes: Path, mark: dict[str, str], number: signal.Signals, moment: str
) -> None:
    root = tmp_path / "labels"
    config = write_config(tmp_path / "run.yaml", scenes, root, unit_images=2, publish={"batch_images": 4}, report=True)
    run = begin(config, root, mark)
    wait(MOMENTS[moment], run)
    os.killpg(run.process.pid, number)  # to all of them, as a terminal does
    began = time.monotonic()
    code = run.process.wait(60)
    ended_s = time.monotonic() - began
    gone_s = gone(mark, GONE_WITHIN_S)
    print(
        f"{number.name:8} {moment:18} exit code {code:4} after {ended_s:5.2f} s, none left after {gone_s:5.2f} s more"
    )
    assert code == 130 or (code == 0 and moment == "the very end"), run.errors
    assert ended_s < ENDED_WITHIN_S
    assert "Traceback" not in run.errors
    resumed = command("label", "--config", config)
    assert resumed.returncode == 0, resumed.stderr
    report = verify(str(root), StorageOptions())
    assert not report.violations
    keys = segray.images(str(root)).to_table(["image_key"])["image_key"].to_pylist()
    assert len(keys) == len(set(keys)) == IMAGES


def test_a_run_that_was_started_to_outlive_its_terminal_does(
    tmp_path: Path, scenes: Path, mark: dict[str, str]
) -> None:
    root = tmp_path / "labels"
    config = write_config(tmp_path / "run.yaml", scenes, root, unit_images=2)
    run = begin(config, root, mark, "nohup")
    for name in ("Ray starts", "labelling"):
        wait(MOMENTS[name], run)
        os.killpg(run.process.pid, signal.SIGHUP)
    assert run.process.wait(120) == 0, run.errors
    assert segray.images(str(root)).count_rows() == IMAGES
