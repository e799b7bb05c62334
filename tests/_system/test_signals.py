"""SIGINT and SIGTERM to a running command, at every stage of it: order, exit codes, nothing left running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import label_sets
import pytest
from clusters import marked
from command import ENV, here, start, write_config

import segray
from segray.synthetic import dataset

pytestmark = pytest.mark.integration

IMAGES = 48


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    dataset.write(folder, IMAGES, seed=11)
    return folder / "images"


def wait(condition: Callable[[], object], process: subprocess.Popen[str], within_s: float = 90) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def nothing_runs(mark: dict[str, str], within_s: float = 20) -> bool:
    deadline = time.monotonic() + within_s
    while list(marked(mark)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return not list(marked(mark))


def staged(root: Path) -> list[Path]:
    return list(root.glob("_segray/runs/*/staged/*.arrow"))


def data_files(root: Path) -> list[Path]:
    return list(root.glob("instances/class=*/*.parquet"))


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        pytest.param(signal.SIGTERM, staged, id="labelling"),
        pytest.param(signal.SIGINT, data_files, id="merging", marks=pytest.mark.chaos),
    ],
)
def test_the_first_signal_ends_a_run_in_order(
    tmp_path: Path,
    scenes: Path,
    mark: dict[str, str],
    number: signal.Signals,
    moment: Callable[[Path], list[Path]],
) -> None:
    root = tmp_path / "labels"
    config = write_config(tmp_path / "run.yaml", scenes, root, unit_images=2, publish={"batch_images": 4})
    process = start("label", "--config", config, env=mark)
    wait(lambda: moment(root), process)
    # To all of them, as a terminal does on Ctrl-C and a supervisor on stop.
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "run the same command again" in output
    assert "Traceback" not in output
    assert nothing_runs(mark)
    resumed = here("label", "--config", config)
    assert resumed.returncode == 0, resumed.stderr
    assert segray.images(str(root)).count_rows() == IMAGES
    found = segray.scan(str(root)).to_table().column("image_key").to_pylist()
    rows = segray.images(str(root)).to_table().to_pylist()
    assert {row["image_key"]: row["n_instances"] for row in rows if row["n_instances"]} == {
        key: found.count(key) for key in set(found)
    }


@pytest.mark.parametrize(
    "waits",
    [
        pytest.param(False, id="process", marks=pytest.mark.thorough),
        pytest.param(True, id="cluster", marks=pytest.mark.chaos),
    ],
)
def test_the_second_signal_ends_it_at_once(tmp_path: Path, scenes: Path, mark: dict[str, str], waits: bool) -> None:
    root = tmp_path / "labels"
    config = write_config(tmp_path / "run.yaml", scenes, root, unit_images=2)
    process = start("label", "--config", config, env=mark)
    wait(lambda: staged(root), process)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.02)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert process.returncode in (130, -signal.SIGTERM), output
    assert time.monotonic() - began < 5
    assert "Traceback" not in output
    # The process had no time to end what it started, and Ray looks once a minute.
    assert not waits or nothing_runs(mark, within_s=90)


@pytest.mark.parametrize(
    "after_s",
    [
        pytest.param(1.0, marks=pytest.mark.thorough),
        pytest.param(0.0, marks=pytest.mark.chaos),
        pytest.param(3.0, marks=pytest.mark.chaos),
    ],
)
def test_a_signal_while_the_cluster_and_its_workers_start(
    tmp_path: Path, scenes: Path, mark: dict[str, str], after_s: float
) -> None:
    config = write_config(tmp_path / "run.yaml", scenes, tmp_path / "labels", unit_images=2)
    process = start("label", "--config", config, env=mark)
    assert process.stdout is not None
    assert "images to label" in process.stdout.readline()
    time.sleep(after_s)
    process.send_signal(signal.SIGTERM)
    output = process.stdout.read()
    assert process.wait(60) == 130, output
    assert "run the same command again" in output
    assert "Traceback" not in output
    assert nothing_runs(mark)


LOST = {
    "while an object is finalised": """
class Closing:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):
            pass
signals.listen()
Closing()
""",
    "to a library's own handler": """
signals.listen()
signal.signal(signal.SIGTERM, lambda number, frame: None)
os.kill(os.getpid(), signal.SIGTERM)
signals.listen()
""",
}


@pytest.mark.parametrize("how", LOST)
def test_a_signal_whose_exception_is_lost_is_found_in_the_pipe(how: str) -> None:
    then = """
print("went on", flush=True)
try:
    signals.check()
except KeyboardInterrupt as found:
    print(found, flush=True)
signals.listen()  # as after a library, while what was begun is ended
os.kill(os.getpid(), signal.SIGTERM)
"""
    program = f"import os, signal\nfrom segray._system import signals\n{LOST[how]}{then}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.splitlines() == ["went on", "SIGTERM"], done.stderr
    assert done.returncode == -signal.SIGTERM  # the second is left to the system


def test_an_exception_that_is_dropped_is_raised_again_in_silence() -> None:
    program = f"""
import os, signal, time
from segray._system import signals
try:
    {LOST["while an object is finalised"].strip().replace(chr(10), chr(10) + "    ")}
    time.sleep(30)
except KeyboardInterrupt:
    print("asked")
signals.check()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "asked\n", "")


def test_a_signal_before_anything_has_begun(tmp_path: Path, scenes: Path, mark: dict[str, str]) -> None:
    config = write_config(tmp_path / "run.yaml", scenes, tmp_path / "labels")
    process = start("label", "--config", config, env=mark)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    # While Python itself starts, nobody but the system answers, and in silence.
    assert process.returncode == 130 or (process.returncode, output) == (-signal.SIGTERM, "")
    assert nothing_runs(mark)


# ---- while modules are imported -------------------------------------------------------------------

WORDS = "error: interrupted\n  do:    run the same command again\n"


def listens(process: subprocess.Popen[str]) -> bool:
    """Whether the process has put its handlers: before, Python itself is starting. SIGTERM's is the last of them."""
    with suppress(FileNotFoundError, ProcessLookupError):
        status = Path(f"/proc/{process.pid}/status").read_text()
        caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
        return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)
    return True


def interrupted(arguments: list[str], after_s: float, number: signal.Signals, mark: dict[str, str]) -> int:
    """Signal `segray ARGUMENTS` so long after it began to listen. Its exit code is to be its own, or 130."""
    process = subprocess.Popen(
        [sys.executable, "-m", "segray", *arguments], env={**os.environ, **ENV, **mark},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    while not listens(process):
        time.sleep(0.001)
    time.sleep(after_s)
    process.send_signal(number)
    began = time.monotonic()
    out, error = process.communicate(timeout=60)
    told = after_s, number, out, error
    assert process.returncode in (0, 130), told
    assert "Traceback" not in error, told
    assert "ignored" not in error, told
    if process.returncode == 130:
        assert time.monotonic() - began < 10, told
        assert error.endswith(WORDS) or "error: interrupted; everything finished so far is kept" in error, told
    else:
        assert out, told
    return process.returncode


@pytest.mark.parametrize(
    ("command", "every_s", "until_s"),
    [("version", 0.1, 0.4), pytest.param("verify", 0.5, 2.5, marks=pytest.mark.thorough),
     pytest.param("version", 0.01, 0.4, marks=pytest.mark.chaos),
     pytest.param("verify", 0.1, 2.5, marks=pytest.mark.chaos),
     pytest.param("label", 0.1, 2.5, marks=pytest.mark.chaos)],
)  # fmt: skip
def test_a_signal_at_any_moment_from_the_first_line_on(
    tmp_path: Path, scenes: Path, mark: dict[str, str], command: str, every_s: float, until_s: float
) -> None:
    made = label_sets.write(tmp_path / "made", label_sets.stickers(2))
    config = write_config(tmp_path / "run.yaml", scenes, tmp_path / "labels", unit_images=2)
    arguments = {"version": ["version"], "verify": ["verify", made], "label": ["label", "--config", str(config)]}[
        command
    ]
    codes = [
        interrupted(arguments, step * every_s, (signal.SIGINT, signal.SIGTERM)[step % 2], mark)
        for step in range(round(until_s / every_s))
    ]
    assert codes[0] == 130
    assert nothing_runs(mark)


def ended(program: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


def test_no_module_catches_a_signal_that_comes_while_it_is_imported(tmp_path: Path) -> None:
    (tmp_path / "catching.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException:\n    pass\n"
    )
    program = f"""
import sys
from segray._system import signals
sys.path.insert(0, {str(tmp_path)!r})
signals.listen()
with signals.ending_at_once():
    import catching
"""
    assert ended(program) == (130, WORDS)


def test_a_signal_that_becomes_another_exception_is_an_interruption_all_the_same() -> None:
    program = """
import os, signal, sys
from segray.cli import main as cli
from segray import config
from segray._system import signals
def load(*arguments, **options):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        raise ImportError("half of a module")
config.load = load
sys.argv = ["segray", "label", "--config", "any.yaml"]
signals.listen()
cli.main()
"""
    assert ended(program) == (130, WORDS)


def test_a_signal_after_a_commands_end_changes_nothing() -> None:
    program = """
import os, signal, sys
from segray.cli import main as cli
from segray._system import child_processes as orphans, signals
orphans.kill_children = lambda spared: os.kill(os.getpid(), signal.SIGINT)
sys.argv = ["segray", "version"]
signals.listen()
cli.main()
"""
    assert ended(program) == (0, "")
